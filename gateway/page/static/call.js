// The view of a call: levels, ribbon, transcript and statistics, and the downloads after its end.

import { RATE } from "./audio.js";
import { AGENT, Ribbon, YOU, loudness } from "./ribbon.js";
import { Transcript, clock } from "./transcript.js";
import { sentence } from "./problems.js";

const WARNING_SHOWN = 8000;

const find = (id) => document.getElementById(id);

export class CallView {
  /** Called when the user requests another call. */
  onagain = () => {};

  #ribbon = new Ribbon(find("ribbon"));
  #transcript = new Transcript(find("lines"));
  #session = null;
  #links = [];
  #warned = 0;

  constructor() {
    find("mute").addEventListener("click", () => this.#mute(!this.#session.muted));
    find("end").addEventListener("click", () => this.#session.end());
    find("again").addEventListener("click", () => this.onagain());
  }

  /** Show `session`, which has just started. */
  begin(session, { voice, role }) {
    this.#session = session;
    for (const url of this.#links.splice(0)) URL.revokeObjectURL(url);
    find("call-title").textContent = "On the line";
    find("call-title").dataset.tone = "";
    find("call-note").textContent = role ? `${voice}, ${role.toLowerCase()}` : voice;
    find("agent-name").textContent = voice;
    find("timer").textContent = clock(0);
    for (const id of ["delay", "server-delay"]) find(id).textContent = "–";
    for (const id of ["dropped", "gaps"]) find(id).textContent = "0";
    find("warning").hidden = true;
    find("controls").hidden = false;
    find("after").hidden = true;
    find("nothing").hidden = false;
    find("nothing").textContent = "The agent's text appears here.";
    this.#mute(false);
    this.#transcript = new Transcript(find("lines"));
    this.#ribbon.clear();
    this.#ribbon.flow(() => session.now);
    session.addEventListener("captured", ({ detail }) => this.#sound(YOU, "level-you", detail));
    session.addEventListener("played", ({ detail }) => this.#sound(AGENT, "level-agent", detail));
    session.addEventListener("text", ({ detail }) => this.#addText(detail));
    session.addEventListener("figures", ({ detail }) => this.#measured(detail));
    session.addEventListener("warning", ({ detail }) => this.#warn(detail.message));
    find("call").hidden = false;
    find("mute").focus();
  }

  /** Show the downloads after the end of the call. */
  finish({ problem }) {
    const { recording } = this.#session;
    this.#ribbon.rest();
    for (const id of ["level-you", "level-agent"]) level(find(id), 0);
    find("call-title").textContent = problem ? problem.title : "The call is over";
    find("call-title").dataset.tone = problem ? "bad" : "";
    find("call-note").textContent = problem ? problem.advice : "You ended it.";
    find("warning").hidden = true;
    find("controls").hidden = true;
    find("after").hidden = false;
    if (this.#transcript.empty) find("nothing").textContent = "The agent produced no text.";
    const stamp = new Date().toISOString().slice(0, 16).replaceAll(":", "-");
    const wav = recording.wav();
    this.#offer("download", wav, `personaplex-${stamp}.wav`);
    find("player").src = find("download").href;
    find("download-size").textContent = size(wav.size);
    find("download-text").hidden = this.#transcript.empty;
    this.#offer("download-text", new Blob([this.#transcript.text()], { type: "text/plain" }), `personaplex-${stamp}.txt`);
    find("timer").textContent = clock(recording.seconds);
    find("call-title").focus();
  }

  hide() {
    find("call").hidden = true;
    find("player").removeAttribute("src");
  }

  #mute(muted) {
    this.#session.mute(muted);
    find("mute").setAttribute("aria-pressed", String(muted));
    find("mute-text").textContent = muted ? "Muted" : "Mute";
  }

  #sound(side, id, { at, pcm }) {
    if (this.#session.state !== "talking") return;
    const loud = loudness(pcm);
    this.#ribbon.add(side, at / RATE, loud);
    level(find(id), loud);
  }

  #addText(piece) {
    find("nothing").hidden = true;
    this.#transcript.add(piece);
  }

  #measured({ seconds, delay, server, dropped, gaps }) {
    find("timer").textContent = clock(seconds);
    if (delay !== null) find("delay").textContent = Math.round(delay * 1000);
    if (server !== null) find("server-delay").textContent = Math.round(server * 1000);
    find("dropped").textContent = dropped;
    find("gaps").textContent = gaps;
  }

  #warn(message) {
    const warning = find("warning");
    warning.textContent = sentence(message);
    warning.hidden = false;
    clearTimeout(this.#warned);
    this.#warned = setTimeout(() => (warning.hidden = true), WARNING_SHOWN);
  }

  #offer(id, blob, name) {
    const url = URL.createObjectURL(blob);
    this.#links.push(url);
    Object.assign(find(id), { href: url, download: name });
  }
}

function level(meter, loud) {
  meter.style.setProperty("--level", loud.toFixed(3));
  meter.setAttribute("aria-valuenow", String(Math.round(loud * 100)));
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
