// The setup view: voice, prompt and options of a call.

import { choices, readiness, voicesNow } from "./server.js";
import { microphones, obstacle } from "./audio.js";

const FAMILIES = { NATF: "Natural, female", NATM: "Natural, male", VARF: "Varied, female", VARM: "Varied, male" };
const READINESS = {
  ready: "Server ready",
  draining: "Server shutting down",
  models: "Models not ready",
  unreachable: "Server out of reach",
};
const READINESS_EVERY = 15_000;
const REMEMBERED = "personaplex.choices";

const find = (id) => document.getElementById(id);

export class Setup {
  /** Called when the user starts a call. */
  onstart = () => {};

  #prompts = { default: "", system_prompts: [] };
  #loaded = false;
  #loading = null;
  #remembered = recall();
  #voicesShown = "";

  constructor() {
    find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.onstart();
    });
    find("role").addEventListener("change", () => this.#roleChosen());
    find("prompt").addEventListener("input", () => this.#promptWritten());
    find("key").addEventListener("change", () => this.load());
    find("voices").addEventListener("change", () => this.#nameVoice());
    const problem = obstacle();
    if (problem) this.showProblem(problem);
    this.load();
    this.#watchServer();
  }

  /** Load voices and prompts. Only one request runs at a time, so that the choices are not replaced twice. */
  load() {
    this.#loading ??= this.#load().finally(() => (this.#loading = null));
    return this.#loading;
  }

  async #load() {
    const { key } = this;
    try {
      const { voices, prompts } = await choices(key);
      this.#showVoices(voices);
      this.#showPrompts(prompts);
      if (!this.#loaded && !obstacle()) this.showProblem(null);
      this.#loaded = true;
    } catch (problem) {
      if (!this.#loaded) find("voices").firstElementChild.textContent = "Not known yet.";
      this.showProblem(problem);
    }
    this.#showMicrophones();
    // The user changed the key meanwhile.
    if (key !== this.key) await this.#load();
  }

  get key() {
    return find("key").value.trim();
  }

  get deviceId() {
    return find("microphone").value;
  }

  /** Display names of voice and role. */
  get chosen() {
    const role = find("role");
    return { voice: this.#voice ?? "Agent", role: role.value ? role.selectedOptions[0].textContent : "" };
  }

  /** The parameters of the call, without those left at the server's default. */
  get start() {
    const role = find("role").value;
    const number = (id) => (find(id).value === "" ? undefined : find(id).valueAsNumber);
    remember({ voice: this.#voice, role, prompt: role ? undefined : find("prompt").value });
    return {
      voice: this.#voice,
      ...(role ? { system_prompt: role } : { text_prompt: find("prompt").value }),
      audio_temperature: number("audio-temperature"),
      text_temperature: number("text-temperature"),
      seed: number("seed"),
    };
  }

  get loaded() {
    return this.#loaded;
  }

  /** Show an error, or clear it. */
  showProblem(problem) {
    const alert = find("alert");
    alert.hidden = !problem;
    if (!problem) return;
    const title = document.createElement("strong");
    title.textContent = problem.title;
    const advice = document.createElement("span");
    advice.textContent = problem.advice;
    alert.replaceChildren(title, advice);
    alert.scrollIntoView({ block: "nearest" });
    if (problem.asksForKey) {
      find("key-field").hidden = false;
      find("key").focus();
    }
  }

  /** Show the progress of a start; null if no call is being started. */
  busy(text) {
    find("start-text").textContent = text ?? "Start the call";
    find("start").setAttribute("aria-disabled", String(Boolean(text)));
    find("cancel").hidden = !text;
  }

  get #voice() {
    return document.querySelector("#voices input:checked")?.value;
  }

  #showVoices({ default: fallback, voices }) {
    this.#voicesShown = JSON.stringify(voices);
    const focused = find("voices").contains(document.activeElement);
    const preferred = this.#voice ?? this.#remembered.voice;
    const names = voices.map(({ name }) => name);
    const chosen = names.includes(preferred) ? preferred : fallback;
    const families = new Map();
    for (const { name, origin } of voices) {
      const published = origin === "built-in" && name.match(/^(NATF|NATM|VARF|VARM)(\d+)$/);
      const [, family, number] = published || [null, "", name];
      const title = FAMILIES[family] ?? (origin === "added" ? "Added" : "Others");
      families.set(title, [...(families.get(title) ?? []), chip(name, title, number, name === chosen)]);
    }
    const rows = [...families].map(([title, chips]) => {
      const row = element("div", { className: "family" });
      const group = element("div", { className: "chips" });
      group.append(...chips);
      row.append(element("span", { textContent: title }), group);
      return row;
    });
    find("voices").replaceChildren(...rows);
    if (focused) document.querySelector("#voices input:checked")?.focus();
    this.#nameVoice();
  }

  /** Update the list of voices if it has changed. */
  async #refreshVoices() {
    try {
      const voices = await voicesNow(this.key);
      if (JSON.stringify(voices.voices) !== this.#voicesShown) this.#showVoices(voices);
    } catch {
      // The error is shown when the user starts a call.
    }
  }

  #nameVoice() {
    find("voice-name").textContent = this.#voice ?? "";
  }

  #showPrompts(prompts) {
    this.#prompts = prompts;
    const role = find("role");
    const named = prompts.system_prompts.map(({ name }) => new Option(displayName(name), name));
    role.replaceChildren(...named, new Option("In your own words", ""));
    const words = find("prompt");
    // A text by the user is not replaced, and a focused field is not changed.
    if (this.#loaded || words.value || words === document.activeElement) {
      this.#promptWritten();
      return;
    }
    const { role: preferred, prompt } = this.#remembered;
    role.value = prompts.system_prompts.some(({ name }) => name === preferred) ? preferred : prompts.default;
    if (preferred === "" && prompt) role.value = "";
    words.value = role.value ? this.#textOf(role.value) : prompt;
  }

  async #showMicrophones() {
    const select = find("microphone");
    const chosen = select.value;
    const devices = await microphones();
    const options = devices.map(({ label, deviceId }) => new Option(label || "Microphone", deviceId));
    select.replaceChildren(new Option("The browser's choice", ""), ...options);
    select.value = devices.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
  }

  #roleChosen() {
    const role = find("role").value;
    if (role) find("prompt").value = this.#textOf(role);
    else find("prompt").focus();
  }

  /** A changed preset becomes a custom text. */
  #promptWritten() {
    const text = find("prompt").value;
    find("role").value = this.#prompts.system_prompts.find((prompt) => prompt.text === text)?.name ?? "";
  }

  #textOf(name) {
    return this.#prompts.system_prompts.find((prompt) => prompt.name === name)?.text ?? "";
  }

  /** Show whether the server accepts calls. */
  async checkServer() {
    const state = await readiness();
    find("server").dataset.state = state;
    find("server-text").textContent = READINESS[state];
    if (state !== "ready") return;
    if (this.#loaded) await this.#refreshVoices();
    else if (find("key-field").hidden) await this.load();
  }

  async #watchServer() {
    if (["idle", "over"].includes(document.body.dataset.state) && !document.hidden) await this.checkServer();
    setTimeout(() => this.#watchServer(), READINESS_EVERY);
  }
}

function chip(name, family, text, checked) {
  const label = element("label", { className: "chip", title: name });
  const input = element("input", { type: "radio", name: "voice", value: name, checked });
  input.setAttribute("aria-label", `${family} ${text}`);
  const shown = element("span", { textContent: text });
  label.append(input, shown);
  return label;
}

function element(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

/** Display form of a name such as "customer-service". */
function displayName(name) {
  const words = name.replaceAll("-", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function recall() {
  try {
    return JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
  } catch {
    return {};
  }
}

function remember(choices) {
  try {
    localStorage.setItem(REMEMBERED, JSON.stringify(choices));
  } catch {
    // Private windows may forbid storage; then nothing is stored.
  }
}
