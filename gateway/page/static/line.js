// The caller's end of the line: microphone and loudspeaker on one clock, each reported in blocks of 80 ms.

import { Trouble, ofMicrophone } from "./trouble.js";

/** Hz, of what the agent says, and of the clock that `at` counts in. */
export const RATE = 24000;

const CONSTRAINTS = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };

/** Why there can be no call on this page at all, if so. */
export function obstacle() {
  if (!window.isSecureContext) return new Trouble("insecure");
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return new Trouble("unsupported");
  return null;
}

/** The microphones there are; without names until one has been allowed. */
export async function microphones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId);
}

export class Line {
  /** Called with {at, pcm} of the caller: [n] float32 at `rate` Hz. `at` counts samples of 24 kHz. */
  onheard = () => {};
  /** Called with {at, pcm, begun: [{index, at}], fill, gaps, skipped} of what left the loudspeaker. */
  onplayed = () => {};
  /** Called when the microphone goes away. */
  onlost = () => {};
  /** Hz, of what is heard. */
  rate = RATE;

  #context;
  #stream;
  #ears;
  #capture;
  #playback;

  /** Ask for the microphone and start the audio threads. Throws Trouble. */
  static async open(deviceId) {
    const stopped = obstacle();
    if (stopped) throw stopped;
    const line = new Line();
    try {
      // Made before the first wait, while the click that asked for it still counts as the reader's wish for sound.
      line.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      const audio = deviceId ? { ...CONSTRAINTS, deviceId: { exact: deviceId } } : CONSTRAINTS;
      line.#stream = await navigator.mediaDevices.getUserMedia({ audio });
      await line.#play();
      await line.#listen();
      return line;
    } catch (error) {
      line.close();
      throw await ofMicrophone(error);
    }
  }

  /** Seconds by the clock that `at` counts in. */
  get now() {
    return this.#context.currentTime;
  }

  /** Seconds from a sample leaving the page to its being heard. */
  get outputLatency() {
    return (this.#context.baseLatency || 0) + (this.#context.outputLatency || 0);
  }

  /** Let the agent's frame `index` be heard: pcm [n] float32 at 24 kHz. */
  play(index, pcm) {
    this.#playback.port.postMessage({ index, pcm }, [pcm.buffer]);
  }

  /** While muted, what is heard is silence. */
  set muted(muted) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  /** Stop the agent's voice at once. */
  hush() {
    this.#playback?.port.postMessage({ clear: true });
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    for (const context of new Set([this.#context, this.#ears])) {
      if (context && context.state !== "closed") context.close();
    }
  }

  async #play() {
    await load(this.#context, "playback.worklet.js");
    this.#playback = new AudioWorkletNode(this.#context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#playback.port.onmessage = ({ data }) => this.onplayed(data);
    this.#playback.connect(this.#context.destination);
    await this.#context.resume();
  }

  async #listen() {
    const source = this.#source();
    await load(this.#ears, "capture.worklet.js");
    this.#capture = new AudioWorkletNode(this.#ears, "capture", { numberOfOutputs: 0, channelCount: 1 });
    this.rate = this.#ears.sampleRate;
    const offset = this.#context.currentTime - this.#ears.currentTime;
    this.#capture.port.onmessage = ({ data: { at, pcm } }) => {
      this.onheard({ at: this.#ears === this.#context ? at : Math.round((at / this.rate + offset) * RATE), pcm });
    };
    source.connect(this.#capture);
    const [track] = this.#stream.getAudioTracks();
    track.addEventListener("ended", () => this.onlost());
  }

  /** The microphone as a node. Some browsers do not resample it: there it gets a context of its own rate. */
  #source() {
    try {
      this.#ears = this.#context;
      return this.#ears.createMediaStreamSource(this.#stream);
    } catch {
      this.#ears = new AudioContext({ latencyHint: "interactive" });
      return this.#ears.createMediaStreamSource(this.#stream);
    }
  }
}

async function load(context, name) {
  try {
    await context.audioWorklet.addModule(new URL(name, import.meta.url));
  } catch {
    // The browser does not say why, but the page itself was there a moment ago.
    throw new Trouble("unreachable");
  }
}
