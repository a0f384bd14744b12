// A call: connects audio, WebSocket and recording, and computes the statistics.

import { Line, RATE } from "./line.js";
import { LEFT, RIGHT, Recording } from "./recording.js";
import { Trouble, ofClosing } from "./trouble.js";
import { Wire } from "./wire.js";

/** Milliseconds without a message from the server until the warning, and until the call ends. */
const STALLED = 3000;
const LOST = 15_000;
/** Timeout in milliseconds for the server's last message. */
const GOODBYE = 2000;
const WATCH = 500;
/** Number of delays in the median that is shown: those of two seconds. */
const RECENT = 25;
/** Close code of browsers for a broken connection. */
const BROKEN = 1006;

/**
 * Events, each a CustomEvent: `state` (detail: "microphone", "connecting", "preparing", "talking", "ending" or "over"),
 * `heard` and `played` ({at, pcm, rate}), `text` ({index, text}), `figures`, `warning` ({message}).
 */
export class Session extends EventTarget {
  state = "idle";
  muted = false;
  recording = null;

  #line = null;
  #wire = null;
  #cancelled = false;
  #finished;
  #finish;
  #sent = 0;
  #played = 0;
  #spokenAt = new Map();
  #delays = [];
  #figures = { seconds: 0, delay: null, server: null, dropped: 0, lost: 0, gaps: 0 };
  #soundingSince = 0;
  #soundedAt = 0;
  #stalled = false;
  #origin = 0;

  constructor() {
    super();
    this.#finished = new Promise((resolve) => (this.#finish = resolve));
  }

  /**
   * Hold a call; resolves when it is over.
   * @param {{url: URL, start: object, key: string, deviceId: string}} wish
   * @returns {Promise<{trouble: Trouble | null, ended: object | null}>} why it ended badly, if it did; the server's
   *   last word
   */
  async run({ url, start, key, deviceId }) {
    let watch = 0;
    let outcome = { trouble: null, ended: null };
    try {
      this.#become("microphone");
      this.#line = await Line.open(deviceId);
      if (!this.#cancelled) {
        this.#become("connecting");
        this.#listen();
        this.#dial(url, { ...start, audio: { sample_rate: Math.round(this.#line.rate) } }, key);
        watch = setInterval(() => this.#watch(), WATCH);
        outcome = await this.#finished;
      }
    } catch (error) {
      outcome.trouble = error instanceof Trouble ? error : new Trouble("error", error.message);
    } finally {
      clearInterval(watch);
      this.#line?.close();
      this.#become("over");
    }
    return outcome;
  }

  /** Time in seconds on the clock of `at`. */
  get now() {
    return this.#line.now;
  }

  /** While muted, silence is sent. */
  mute(muted) {
    this.muted = muted;
    if (this.#line) this.#line.muted = muted;
  }

  /** End the call, in any state. */
  end() {
    this.#cancelled = true;
    if (this.state === "talking") {
      this.#become("ending");
      this.#line.hush();
      this.#wire.end();
      setTimeout(() => this.#wire.close(), GOODBYE);
    } else {
      this.#wire?.close();
    }
  }

  #dial(url, start, key) {
    try {
      this.#wire = new Wire(url, start, key);
    } catch {
      // Error of browsers for a subprotocol with characters that are not allowed in a header.
      throw new Trouble("unfit-key");
    }
    Object.assign(this.#wire.on, {
      opened: () => this.#become("preparing"),
      ready: () => this.#begin(),
      audio: (pcm) => this.#line.play(this.#played++, pcm),
      text: (message) => this.#tell("text", message),
      stats: (message) => this.#measured(message),
      warning: (message) => this.#tell("warning", message),
    });
    this.#wire.onclosed = (closing) => {
      const trouble = this.#cancelled ? null : ofClosing(closing);
      this.#finish({ trouble, ended: closing.ended });
    };
  }

  #begin() {
    this.#origin = Math.round(this.#line.now * RATE);
    this.recording = new Recording(RATE, this.#origin);
    this.#become("talking");
  }

  #listen() {
    const line = this.#line;
    line.onheard = ({ at, pcm }) => this.#heard(at, pcm);
    line.onplayed = (report) => this.#sounded(report);
    line.onlost = () => this.#tell("warning", { message: "The microphone went away: the agent hears silence." });
  }

  #heard(at, pcm) {
    const now = performance.now();
    if (now - this.#soundedAt > 1000) this.#soundingSince = now;
    this.#soundedAt = now;
    const { rate } = this.#line;
    this.#tell("heard", { at, pcm, rate });
    if (this.state !== "talking") return;
    this.recording.put(LEFT, at, pcm, rate);
    if (this.#wire.send(pcm)) {
      this.#spokenAt.set(this.#sent++, at + (pcm.length * RATE) / rate);
      // Limited to the frames in flight: a call can last for hours.
      this.#spokenAt.delete(this.#sent - 1000);
    }
  }

  #sounded({ at, pcm, begun, gaps }) {
    this.#tell("played", { at, pcm, rate: RATE });
    if (this.state !== "talking") return;
    this.recording.put(RIGHT, at, pcm);
    for (const { index, at: heardAt } of begun) this.#delay(index, heardAt);
    this.#figures.gaps = gaps;
    this.#figures.seconds = this.#line.now - this.#origin / RATE;
    this.#figures.delay = median(this.#delays);
    this.#tell("figures", { ...this.#figures });
  }

  /** Agent frame i belongs to user frame i - 1, not counting frames that the server dropped. */
  #delay(index, heardAt) {
    const spokenAt = this.#spokenAt.get(index - 1 + this.#figures.lost);
    if (spokenAt === undefined) return;
    this.#delays.push((heardAt - spokenAt) / RATE + this.#line.outputLatency);
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
    const speaking = now - this.#soundedAt < 1000;
    const quiet = speaking ? now - Math.max(this.#wire.heardAt, this.#soundingSince) : 0;
    if (quiet > LOST) this.#wire.close(BROKEN);
    else if (quiet > STALLED && !this.#stalled) this.#tell("warning", { message: "The server has gone quiet." });
    this.#stalled = quiet > STALLED;
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#tell("state", state);
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : null;
}
