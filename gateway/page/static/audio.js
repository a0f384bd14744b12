// Audio input and output of the user: microphone and loudspeaker on one clock, in blocks of 80 ms.

import { Problem, ofMicrophone } from "./problems.js";

/** Sample rate in Hz of the agent's audio and of the clock of `at`. */
export const RATE = 24000;

const CONSTRAINTS = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };

/** The reason why this page cannot make calls, if there is one. */
export function obstacle() {
  if (!window.isSecureContext) return new Problem("insecure");
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return new Problem("unsupported");
  return null;
}

/** The available microphones. They have no names before the user has allowed one. */
export async function microphones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  return devices.filter((device) => device.kind === "audioinput" && device.deviceId);
}

export class AudioIO {
  /** Called with the user's {at, pcm}: [n] float32 at `rate` Hz. `at` counts samples of 24 kHz. */
  oncaptured = () => {};
  /** Called with {at, pcm, begun: [{index, at}], fill, gaps, skipped} of the played audio. */
  onplayed = () => {};
  /** Called when the microphone is disconnected. */
  onlost = () => {};
  /** Sample rate of the microphone in Hz. */
  rate = RATE;

  #context;
  #stream;
  #captureContext;
  #capture;
  #playback;

  /** Request the microphone and start the audio threads. Throws Problem. */
  static async open(deviceId) {
    const problem = obstacle();
    if (problem) throw problem;
    const audio = new AudioIO();
    try {
      // Created before the first await: browsers allow audio only directly after the user's click.
      audio.#context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      const constraints = deviceId ? { ...CONSTRAINTS, deviceId: { exact: deviceId } } : CONSTRAINTS;
      audio.#stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
      await audio.#startPlayback();
      await audio.#startCapture();
      return audio;
    } catch (error) {
      audio.close();
      throw await ofMicrophone(error);
    }
  }

  /** Time in seconds on the clock of `at`. */
  get now() {
    return this.#context.currentTime;
  }

  /** Output latency in seconds. */
  get outputLatency() {
    return (this.#context.baseLatency || 0) + (this.#context.outputLatency || 0);
  }

  /** Play the agent's frame `index`: pcm [n] float32 at 24 kHz. */
  play(index, pcm) {
    this.#playback.port.postMessage({ index, pcm }, [pcm.buffer]);
  }

  /** While muted, the microphone yields silence. */
  set muted(muted) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  /** Stop playback at once. */
  stopPlayback() {
    this.#playback?.port.postMessage({ clear: true });
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    for (const context of new Set([this.#context, this.#captureContext])) {
      if (context && context.state !== "closed") context.close();
    }
  }

  async #startPlayback() {
    await load(this.#context, "playback.worklet.js");
    this.#playback = new AudioWorkletNode(this.#context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#playback.port.onmessage = ({ data }) => this.onplayed(data);
    this.#playback.connect(this.#context.destination);
    await this.#context.resume();
  }

  async #startCapture() {
    const source = this.#source();
    await load(this.#captureContext, "capture.worklet.js");
    this.#capture = new AudioWorkletNode(this.#captureContext, "capture", { numberOfOutputs: 0, channelCount: 1 });
    this.rate = this.#captureContext.sampleRate;
    const offset = this.#context.currentTime - this.#captureContext.currentTime;
    this.#capture.port.onmessage = ({ data: { at, pcm } }) => {
      this.oncaptured({ at: this.#captureContext === this.#context ? at : Math.round((at / this.rate + offset) * RATE), pcm });
    };
    source.connect(this.#capture);
    const [track] = this.#stream.getAudioTracks();
    track.addEventListener("ended", () => this.onlost());
  }

  /** Audio node of the microphone. Some browsers do not resample it and need a context with its own rate. */
  #source() {
    try {
      this.#captureContext = this.#context;
      return this.#captureContext.createMediaStreamSource(this.#stream);
    } catch {
      this.#captureContext = new AudioContext({ latencyHint: "interactive" });
      return this.#captureContext.createMediaStreamSource(this.#stream);
    }
  }
}

async function load(context, name) {
  try {
    await context.audioWorklet.addModule(new URL(name, import.meta.url));
  } catch {
    // The browser gives no reason, but the page itself was loaded a moment ago.
    throw new Problem("unreachable");
  }
}
