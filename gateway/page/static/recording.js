// Stereo recording of the call as WAV: user left, agent right, aligned in time as played on this machine.

import { toInt16 } from "./client/pcm.js";

const HEADER = 44;
const BLOCK_SECONDS = 10;

export const LEFT = 0;
export const RIGHT = 1;

export class Recording {
  #rate;
  #origin;
  #block;
  #blocks = [];
  #ends = [0, 0];

  /** @param {number} rate Hz @param {number} origin start of the recording in samples of the clock */
  constructor(rate, origin) {
    this.#rate = rate;
    this.#origin = origin;
    this.#block = rate * BLOCK_SECONDS;
  }

  /** Length in seconds. */
  get seconds() {
    return Math.max(...this.#ends) / this.#rate;
  }

  /** Add samples [n] of `rate` Hz at time `at` of the clock; samples before the start are dropped. */
  put(side, at, pcm, rate = this.#rate) {
    const samples = rate === this.#rate ? pcm : resampled(pcm, this.#rate / rate);
    const start = at - this.#origin;
    for (let i = Math.max(0, -start); i < samples.length; i++) {
      const position = start + i;
      const block = this.#writable(Math.floor(position / this.#block));
      if (block) block[(position % this.#block) * 2 + side] = toInt16(samples[i]);
    }
    this.#ends[side] = Math.max(this.#ends[side], start + samples.length);
    this.#seal();
  }

  /** The whole recording. @returns {Blob} audio/wav, 16 bit */
  wav() {
    const frames = Math.max(0, ...this.#ends);
    const parts = [];
    for (let k = 0; k * this.#block < frames; k++) {
      const count = Math.min(this.#block, frames - k * this.#block);
      const block = this.#blocks[k] ?? new Int16Array(this.#block * 2);
      parts.push(block instanceof Blob ? block.slice(0, count * 4) : bytes(block.subarray(0, count * 2)));
    }
    return new Blob([header(frames, this.#rate), ...parts], { type: "audio/wav" });
  }

  #writable(k) {
    this.#blocks[k] ??= new Int16Array(this.#block * 2);
    return this.#blocks[k] instanceof Blob ? null : this.#blocks[k];
  }

  /** Move complete blocks into a Blob, which the browser can keep on disk: an hour has 350 MB. */
  #seal() {
    const complete = Math.floor(Math.min(...this.#ends) / this.#block) - 1;
    for (let k = complete; k >= 0 && !(this.#blocks[k] instanceof Blob); k--) {
      this.#blocks[k] = new Blob([bytes(this.#writable(k))]);
    }
  }
}

/** Resample by `ratio`: each output sample is the mean of the input samples that it covers. */
function resampled(pcm, ratio) {
  const out = new Float32Array(Math.round(pcm.length * ratio));
  for (let i = 0; i < out.length; i++) {
    const from = Math.min(Math.floor(i / ratio), pcm.length - 1);
    const to = Math.max(from + 1, Math.min(Math.floor((i + 1) / ratio), pcm.length));
    let sum = 0;
    for (let j = from; j < to; j++) sum += pcm[j];
    out[i] = sum / (to - from);
  }
  return out;
}

/** Convert to little-endian. */
function bytes(samples) {
  const view = new DataView(new ArrayBuffer(samples.length * 2));
  for (let i = 0; i < samples.length; i++) view.setInt16(i * 2, samples[i], true);
  return view.buffer;
}

function header(frames, rate) {
  const view = new DataView(new ArrayBuffer(HEADER));
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  const size = frames * 4;
  text(0, "RIFF");
  view.setUint32(4, HEADER - 8 + size, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 2, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, rate * 4, true);
  view.setUint16(32, 4, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, size, true);
  return view.buffer;
}
