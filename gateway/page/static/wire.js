// The WebSocket protocol of live sessions: JSON messages and PCM audio.

const NORMAL = 1000;
/** Limit of unsent bytes, about a second of speech. More means that the network has stalled. */
const MOST_WAITING = 96_000;

export class Wire {
  /** Handlers by message type; `audio` gets [1920] float32 at 24 kHz; `opened` is called first. */
  on = { opened() {}, ready() {}, audio() {}, text() {}, stats() {}, warning() {} };
  /** Called once, with {code, reason, error, ended, opened}. */
  onclosed = () => {};
  /** Time of the last message from the server, by performance.now(). */
  receivedAt = performance.now();
  /** Blocks that were not sent because the network stalled. */
  unsent = 0;

  #socket;
  #opened = false;
  #error = null;
  #ended = null;
  #over = false;

  /** @param {URL} url @param {object} start parameters of the call @param {string} key the API key, or "" */
  constructor(url, start, key) {
    // Pages cannot set headers of a WebSocket, but they can set a subprotocol.
    this.#socket = new WebSocket(url, ["personaplex.v1", ...(key ? [`personaplex.key.${key}`] : [])]);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => {
      this.#opened = true;
      this.on.opened();
      this.#socket.send(JSON.stringify({ type: "start", ...start, audio: { ...start.audio, format: "pcm_s16le" } }));
    };
    this.#socket.onmessage = ({ data }) => this.#received(data);
    this.#socket.onclose = ({ code, reason }) => this.#finish(code, reason);
  }

  /** Send user audio: [n] float32 at the announced rate. */
  send(pcm) {
    if (this.#socket.readyState !== WebSocket.OPEN) return false;
    if (this.#socket.bufferedAmount > MOST_WAITING) {
      this.unsent += 1;
      return false;
    }
    const words = new DataView(new ArrayBuffer(pcm.length * 2));
    for (let i = 0; i < pcm.length; i++) words.setInt16(i * 2, toInt16(pcm[i]), true);
    this.#socket.send(words.buffer);
    return true;
  }

  /** Signal the end of the user's audio. */
  end() {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify({ type: "end" }));
  }

  /** Close without waiting for the server. */
  close(code = NORMAL) {
    this.#socket.close(NORMAL);
    this.#finish(code, "");
  }

  #received(data) {
    this.receivedAt = performance.now();
    if (this.#over) return;
    if (data instanceof ArrayBuffer) {
      this.on.audio(fromInt16(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "error") this.#error = message;
    else if (message.type === "ended") this.#ended = message;
    else this.on[message.type]?.(message);
  }

  #finish(code, reason) {
    if (this.#over) return;
    this.#over = true;
    this.onclosed({ code, reason, error: this.#error, ended: this.#ended, opened: this.#opened });
  }
}

/** Convert a sample of -1..1 to a 16-bit integer. */
export function toInt16(sample) {
  return Math.round(Math.max(-1, Math.min(1, sample)) * 32767);
}

function fromInt16(buffer) {
  const words = new DataView(buffer);
  const pcm = new Float32Array(buffer.byteLength >> 1);
  for (let i = 0; i < pcm.length; i++) pcm[i] = words.getInt16(i * 2, true) / 32768;
  return pcm;
}
