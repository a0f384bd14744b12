// The transcript of the agent's speech; a pause starts a new line.

const FRAME_SECONDS = 0.08;
/** Frames without text that count as a pause. */
const PAUSE = 15;

export class Transcript {
  #list;
  #line = null;
  #last = -Infinity;
  #lines = [];

  /** @param {HTMLElement} list an ordered list */
  constructor(list) {
    this.#list = list;
    list.replaceChildren();
  }

  get empty() {
    return !this.#lines.length;
  }

  /** Add the piece `text` of agent frame `index`. */
  add({ index, text }) {
    const follow = this.#list.scrollHeight - this.#list.scrollTop - this.#list.clientHeight < 40;
    if (index - this.#last >= PAUSE) this.#begin(index * FRAME_SECONDS);
    this.#last = index;
    const line = this.#lines.at(-1);
    line.text = (line.text + text).trimStart();
    this.#line.textContent = line.text;
    if (follow) this.#list.scrollTop = this.#list.scrollHeight;
  }

  /** The transcript as plain text, one line each. */
  text() {
    return this.#lines.map(({ at, text }) => `${clock(at)}  ${text.trim()}\n`).join("");
  }

  #begin(at) {
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = clock(at);
    this.#line = document.createElement("p");
    item.append(time, this.#line);
    this.#list.append(item);
    this.#lines.push({ at, text: "" });
  }
}

/** Seconds as m:ss, or h:mm:ss. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}
