// Audio worklet of the loudspeaker: plays the agent's frames through the jitter buffer and reports the played audio.

import { JitterBuffer } from "./jitter.js";

const BLOCK_SECONDS = 0.08;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new JitterBuffer(sampleRate);
    this.block = new Float32Array(Math.round(sampleRate * BLOCK_SECONDS));
    this.filled = 0;
    this.begun = [];
    this.port.onmessage = ({ data }) => {
      if (data.clear) this.buffer.clear();
      else this.buffer.push(data.pcm, data.index);
    };
  }

  process(_inputs, [output]) {
    const out = output[0];
    for (const { mark, offset } of this.buffer.pull(out)) this.begun.push({ index: mark, at: currentFrame + offset });
    for (let channel = 1; channel < output.length; channel++) output[channel].set(out);
    this.#report(out);
    return true;
  }

  #report(out) {
    for (let from = 0; from < out.length; ) {
      const count = Math.min(out.length - from, this.block.length - this.filled);
      this.block.set(out.subarray(from, from + count), this.filled);
      this.filled += count;
      from += count;
      if (this.filled < this.block.length) continue;
      const { fill, gaps, skipped } = this.buffer;
      const at = currentFrame + from - this.block.length;
      const message = { at, pcm: this.block, begun: this.begun, fill, gaps, skipped: skipped / sampleRate };
      this.block = new Float32Array(this.block.length);
      this.filled = 0;
      this.begun = [];
      this.port.postMessage(message, [message.pcm.buffer]);
    }
  }
}

registerProcessor("playback", Playback);
