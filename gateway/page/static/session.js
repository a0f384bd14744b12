// A call: connects audio, conversation and recording, and computes the statistics.

import { AudioIO, RATE } from "./audio.js";
import { LEFT, RIGHT, Recording } from "./recording.js";
import { Problem, ofEnd, ofError } from "./problems.js";

/** Milliseconds without a message from the server until the warning, and until the call ends. */
const STALLED = 3000;
const LOST = 15_000;
/** Timeout in milliseconds for the server's last message. */
const CLOSE_TIMEOUT = 2000;
const WATCH = 500;
/** Number of delays in the median that is shown: those of two seconds. */
const RECENT = 25;
/** Limit of unsent bytes, about a second of speech. More means that the network has stalled. */
const MOST_UNSENT = 96_000;

/**
 * Events, each a CustomEvent: `state` (detail: "microphone", "connecting", "preparing", "talking", "ending" or "over"),
 * `captured` and `played` ({at, pcm, rate}), `text` ({index, text}), `figures`, `warning` ({message}).
 */
export class Session extends EventTarget {
  state = "idle";
  muted = false;
  recording = null;

  #audio = null;
  #conversation = null;
  #cancelled = false;
  #lost = false;
  #giveUp = new AbortController();
  #receivedAt = 0;
  #unsent = 0;
  #sent = 0;
  #played = 0;
  #playedBefore = 0;
  #lostBefore = 0;
  #capturedAt = new Map();
  #delays = [];
  #figures = { seconds: 0, delay: null, server: null, dropped: 0, lost: 0, gaps: 0 };
  #capturingSince = 0;
  #lastCapture = 0;
  #stalled = false;
  #origin = 0;

  /**
   * Hold a call; resolves when it is over.
   * @param {{client: Client, key: string, start: object, deviceId: string}} options
   * @returns {Promise<{problem: Problem | null}>} the problem that ended the call, if any
   */
  async run({ client, key, start, deviceId }) {
    let watch = 0;
    let problem = null;
    try {
      this.#become("microphone");
      this.#audio = await AudioIO.open(deviceId);
      if (!this.#cancelled) {
        this.#become("connecting");
        this.#connectAudio();
        const params = { ...start, audio: { sample_rate: Math.round(this.#audio.rate) } };
        const onopen = () => this.#become("preparing");
        this.#conversation = await client.converse(params, { signal: this.#giveUp.signal, onopen });
        this.#begin();
        watch = setInterval(() => this.#watch(), WATCH);
        const ended = await this.#converse();
        if (this.#lost || !ended) problem = new Problem("lost");
        else problem = ofEnd(ended);
      }
    } catch (error) {
      // A call that is given up throws the signal's AbortError.
      if (error instanceof Problem || this.#cancelled) problem = error;
      else problem = error.code ? ofError(error, key) : new Problem("error", error.message);
    } finally {
      clearInterval(watch);
      this.#audio?.close();
      this.#become("over");
    }
    return { problem: this.#cancelled ? null : problem };
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
      this.#conversation.end();
      setTimeout(() => this.#conversation.close(), CLOSE_TIMEOUT);
    } else {
      this.#giveUp.abort();
      this.#conversation?.close();
    }
  }

  /** Read the agent's events to the end; returns `ended`, or null if the connection was closed. */
  async #converse() {
    for await (const event of this.#conversation) {
      this.#receivedAt = performance.now();
      if (event.type === "audio") this.#audio.play(this.#played++, event.pcm);
      else if (event.type === "text") this.#emit("text", event);
      else if (event.type === "stats") this.#measured(event);
      else if (event.type === "warning") this.#emit("warning", event);
      else if (event.type === "ready") this.#resumed(event);
      else if (event.type === "ended") return event;
    }
    return null;
  }

  #begin() {
    this.#origin = Math.round(this.#audio.now * RATE);
    this.recording = new Recording(RATE, this.#origin);
    this.#receivedAt = performance.now();
    this.#become("talking");
  }

  /** The connection was lost and another one has replaced it: delays are counted from here. */
  #resumed({ index, missed_text: text }) {
    this.#capturedAt.clear();
    this.#sent = 0;
    this.#playedBefore = this.#played;
    this.#lostBefore = this.#figures.lost;
    if (text) this.#emit("text", { index, text });
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
    if (this.#conversation.unsent > MOST_UNSENT) {
      this.#unsent += 1;
      return;
    }
    this.#conversation.send(pcm);
    this.#capturedAt.set(this.#sent++, end);
    // Limited to the frames in flight: a call can last for hours.
    this.#capturedAt.delete(this.#sent - 1000);
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

  /** Agent frame i belongs to user frame i - 1 of the same connection, not counting frames that the server dropped. */
  #delay(index, playedAt) {
    const capturedAt = this.#capturedAt.get(index - this.#playedBefore - 1 + this.#figures.lost - this.#lostBefore);
    if (capturedAt === undefined) return;
    this.#delays.push((playedAt - capturedAt) / RATE + this.#audio.outputLatency);
    if (this.#delays.length > RECENT) this.#delays.shift();
  }

  #measured({ latency_ms: latency, dropped_frames: dropped }) {
    this.#figures.server = latency / 1000;
    this.#figures.lost = dropped;
    this.#figures.dropped = dropped + this.#unsent;
  }

  /** Detect a dead connection earlier than the browser: the server then sends no frames. */
  #watch() {
    if (this.state !== "talking") return;
    const now = performance.now();
    const capturing = now - this.#lastCapture < 1000;
    const quiet = capturing ? now - Math.max(this.#receivedAt, this.#capturingSince) : 0;
    if (quiet > Math.max(LOST, 1000 * (this.#conversation.ready.resume?.seconds ?? 0))) {
      this.#lost = true;
      this.#conversation.close();
    } else if (quiet > STALLED && !this.#stalled) this.#emit("warning", { message: "The server has gone quiet." });
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
