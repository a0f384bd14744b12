// A call: connects audio, WebSocket and recording, and computes the statistics.

import { AudioIO, RATE } from "./audio.js";
import { LEFT, RIGHT, Recording } from "./recording.js";
import { Problem, ofClosing } from "./problems.js";
import { Wire } from "./wire.js";

/** Milliseconds without a message from the server until the warning, and until the call ends. */
const STALLED = 3000;
const LOST = 15_000;
/** Timeout in milliseconds for the server's last message. */
const CLOSE_TIMEOUT = 2000;
const WATCH = 500;
/** Number of delays in the median that is shown: those of two seconds. */
const RECENT = 25;
/** Close code of browsers for a broken connection. */
const BROKEN = 1006;

/**
 * Events, each a CustomEvent: `state` (detail: "microphone", "connecting", "preparing", "talking", "ending" or "over"),
 * `captured` and `played` ({at, pcm, rate}), `text` ({index, text}), `figures`, `warning` ({message}).
 */
export class Session extends EventTarget {
  state = "idle";
  muted = false;
  recording = null;

  #audio = null;
  #wire = null;
  #cancelled = false;
  #finished;
  #finish;
  #sent = 0;
  #played = 0;
  #capturedAt = new Map();
  #delays = [];
  #figures = { seconds: 0, delay: null, server: null, dropped: 0, lost: 0, gaps: 0 };
  #capturingSince = 0;
  #lastCapture = 0;
  #stalled = false;
  #origin = 0;

  constructor() {
    super();
    this.#finished = new Promise((resolve) => (this.#finish = resolve));
  }

  /**
   * Hold a call; resolves when it is over.
   * @param {{url: URL, start: object, key: string, deviceId: string}} options
   * @returns {Promise<{problem: Problem | null, ended: object | null}>} the problem that ended the call, if any, and
   *   the server's last message
   */
  async run({ url, start, key, deviceId }) {
    let watch = 0;
    let outcome = { problem: null, ended: null };
    try {
      this.#become("microphone");
      this.#audio = await AudioIO.open(deviceId);
      if (!this.#cancelled) {
        this.#become("connecting");
        this.#connectAudio();
        this.#dial(url, { ...start, audio: { sample_rate: Math.round(this.#audio.rate) } }, key);
        watch = setInterval(() => this.#watch(), WATCH);
        outcome = await this.#finished;
      }
    } catch (error) {
      outcome.problem = error instanceof Problem ? error : new Problem("error", error.message);
    } finally {
      clearInterval(watch);
      this.#audio?.close();
      this.#become("over");
    }
    return outcome;
  }

  /** Time in seconds on the clock of `at`. */
  get now() {
    return this.#audio.now;
  }

  /** While muted, silence is sent. */
  mute(muted) {
    this.muted = muted;
    if (this.#audio) this.#audio.muted = muted;
  }

  /** End the call, in any state. */
  end() {
    this.#cancelled = true;
    if (this.state === "talking") {
      this.#become("ending");
      this.#audio.stopPlayback();
      this.#wire.end();
      setTimeout(() => this.#wire.close(), CLOSE_TIMEOUT);
    } else {
      this.#wire?.close();
    }
  }

  #dial(url, start, key) {
    try {
      this.#wire = new Wire(url, start, key);
    } catch {
      // Error of browsers for a subprotocol with characters that are not allowed in a header.
      throw new Problem("unfit-key");
    }
    Object.assign(this.#wire.on, {
      opened: () => this.#become("preparing"),
      ready: () => this.#begin(),
      audio: (pcm) => this.#audio.play(this.#played++, pcm),
      text: (message) => this.#emit("text", message),
      stats: (message) => this.#measured(message),
      warning: (message) => this.#emit("warning", message),
    });
    this.#wire.onclosed = (closing) => {
      const problem = this.#cancelled ? null : ofClosing(closing);
      this.#finish({ problem, ended: closing.ended });
    };
  }

  #begin() {
    this.#origin = Math.round(this.#audio.now * RATE);
    this.recording = new Recording(RATE, this.#origin);
    this.#become("talking");
  }

  #connectAudio() {
    const audio = this.#audio;
    audio.oncaptured = ({ at, pcm }) => this.#captured(at, pcm);
    audio.onplayed = (report) => this.#reportPlayback(report);
    audio.onlost = () => this.#emit("warning", { message: "The microphone is disconnected. Silence is sent to the agent." });
  }

  #captured(at, pcm) {
    const now = performance.now();
    if (now - this.#lastCapture > 1000) this.#capturingSince = now;
    this.#lastCapture = now;
    const { rate } = this.#audio;
    const end = at + (pcm.length * RATE) / rate;
    this.#emit("captured", { at, pcm, rate });
    // A busy page receives blocks late. One that ended before the call began would delay all that follow.
    if (this.state !== "talking" || end <= this.#origin) return;
    this.recording.put(LEFT, at, pcm, rate);
    if (this.#wire.send(pcm)) {
      this.#capturedAt.set(this.#sent++, end);
      // Limited to the frames in flight: a call can last for hours.
      this.#capturedAt.delete(this.#sent - 1000);
    }
  }

  #reportPlayback({ at, pcm, begun, gaps }) {
    this.#emit("played", { at, pcm, rate: RATE });
    if (this.state !== "talking") return;
    this.recording.put(RIGHT, at, pcm);
    for (const { index, at: playedAt } of begun) this.#delay(index, playedAt);
    this.#figures.gaps = gaps;
    this.#figures.seconds = this.#audio.now - this.#origin / RATE;
    this.#figures.delay = median(this.#delays);
    this.#emit("figures", { ...this.#figures });
  }

  /** Agent frame i belongs to user frame i - 1, not counting frames that the server dropped. */
  #delay(index, playedAt) {
    const capturedAt = this.#capturedAt.get(index - 1 + this.#figures.lost);
    if (capturedAt === undefined) return;
    this.#delays.push((playedAt - capturedAt) / RATE + this.#audio.outputLatency);
    if (this.#delays.length > RECENT) this.#delays.shift();
  }

  #measured({ latency_ms: latency, dropped_frames: dropped }) {
    this.#figures.server = latency / 1000;
    this.#figures.lost = dropped;
    this.#figures.dropped = dropped + this.#wire.unsent;
  }

  /** Detect a dead connection earlier than the browser: the server then sends no frames. */
  #watch() {
    if (this.state !== "talking") return;
    const now = performance.now();
    const capturing = now - this.#lastCapture < 1000;
    const quiet = capturing ? now - Math.max(this.#wire.receivedAt, this.#capturingSince) : 0;
    if (quiet > LOST) this.#wire.close(BROKEN);
    else if (quiet > STALLED && !this.#stalled) this.#emit("warning", { message: "The server has gone quiet." });
    this.#stalled = quiet > STALLED;
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#emit("state", state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : null;
}
