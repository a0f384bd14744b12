// The jitter buffer: audio arrives in bursts and is played evenly, with the least delay that avoids gaps.

const FADE = 0.005;
const WINDOW = 10;
const STEP = 0.04;
const SHRINK = 0.02;
const SPARE = 0.03;

/** Seconds of buffered audio above which the buffer skips ahead. */
const MOST = 0.8;
const CAPACITY = 10;

export class JitterBuffer {
  /**
   * @param {number} rate samples per second
   * @param {{least?: number, most?: number}} bounds seconds that must have arrived before playing (re)starts: `least` at
   *   first, more after every gap, up to `most`, and less again while all is well
   */
  constructor(rate, { least = 0.12, most = 0.4 } = {}) {
    this.rate = rate;
    this.least = least;
    this.most = most;
    this.target = least;
    this.playing = false;
    this.gaps = 0;
    this.skipped = 0;
    this.ring = new Float32Array(Math.ceil(rate * CAPACITY));
    this.read = 0;
    this.written = 0;
    this.marks = [];
    this.low = Infinity;
    this.pulled = 0;
  }

  /** Seconds of buffered audio. */
  get fill() {
    return (this.written - this.read) / this.rate;
  }

  /** Add samples. The `pull` that plays the first of them returns `mark`. */
  push(samples, mark) {
    this.marks.push({ mark, at: this.written });
    for (let i = 0; i < samples.length; i++) {
      this.ring[(this.written + i) % this.ring.length] = samples[i];
    }
    this.written += samples.length;
    if (this.written - this.read > this.ring.length) this.#skip(this.written - this.read - this.ring.length);
  }

  /**
   * Fill `out` with the next samples, or silence if there are none.
   * @returns {{mark: unknown, offset: number}[]} the marks whose first sample lies in `out`, and where
   */
  pull(out) {
    const faded = !this.playing;
    if (!this.playing) {
      if (this.fill < this.target) {
        out.fill(0);
        return [];
      }
      this.playing = true;
    }
    const skip = this.#excess(out.length);
    const have = Math.min(out.length, this.written - this.read);
    for (let i = 0; i < have; i++) out[i] = this.#at(this.read + i);
    out.fill(0, have);
    const begun = this.#begun(have);
    if (skip > 0) {
      for (let i = 0; i < have; i++) out[i] += (this.#at(this.read + skip + i) - out[i]) * (i / have);
      this.#skip(skip);
    }
    this.read += have;
    if (faded) fade(out, this.rate, (i) => i);
    if (this.read >= this.written) this.#ranDry(out, have);
    this.#watch(out.length);
    return begun;
  }

  /** Discard the buffered audio. */
  clear() {
    this.read = this.written;
    this.marks = [];
    this.playing = false;
  }

  #at(position) {
    return this.ring[position % this.ring.length];
  }

  #begun(count) {
    const begun = [];
    while (this.marks.length && this.marks[0].at < this.read + count) {
      const { mark, at } = this.marks.shift();
      if (at >= this.read) begun.push({ mark, offset: at - this.read });
    }
    return begun;
  }

  /** Number of samples to skip: the backlog of a stall, or delay that was not needed for a while. */
  #excess(length) {
    let keep = Infinity;
    if (this.fill > this.target + MOST) {
      keep = this.target;
    } else if (this.pulled >= WINDOW * this.rate) {
      keep = this.fill - Math.max(this.low - SPARE, 0);
      this.pulled = 0;
      this.low = Infinity;
      this.target = Math.max(this.least, this.target - SHRINK);
      if (this.fill - keep < STEP) keep = Infinity;
    }
    const skip = Math.floor((this.fill - keep) * this.rate);
    return Math.max(0, Math.min(skip, this.written - this.read - length));
  }

  #skip(samples) {
    this.read += samples;
    this.skipped += samples;
  }

  #ranDry(out, have) {
    fade(out.subarray(0, have), this.rate, (i, length) => length - 1 - i);
    this.playing = false;
    this.gaps += 1;
    this.pulled = 0;
    this.low = Infinity;
    this.target = Math.min(this.target + STEP, this.most);
  }

  #watch(length) {
    this.pulled += length;
    this.low = Math.min(this.low, this.fill);
  }
}

/** Scale the samples whose distance from the silent edge is below the fade's length. */
function fade(samples, rate, distance) {
  const length = Math.min(samples.length, Math.ceil(FADE * rate));
  for (let i = 0; i < samples.length; i++) {
    const d = distance(i, samples.length);
    if (d < length) samples[i] *= d / length;
  }
}
