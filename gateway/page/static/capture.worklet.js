// Audio worklet of the microphone: turns samples into blocks of 80 ms, each with its start time.

const BLOCK_SECONDS = 0.08;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate * BLOCK_SECONDS));
    this.filled = 0;
  }

  process([input]) {
    // An unplugged microphone has no channel. It counts as silence, so that time continues.
    const samples = input[0] ?? new Float32Array(128);
    for (let from = 0; from < samples.length; ) {
      const count = Math.min(samples.length - from, this.block.length - this.filled);
      this.block.set(samples.subarray(from, from + count), this.filled);
      this.filled += count;
      from += count;
      if (this.filled === this.block.length) {
        const at = currentFrame + from - this.block.length;
        const pcm = this.block;
        this.block = new Float32Array(pcm.length);
        this.filled = 0;
        this.port.postMessage({ at, pcm }, [pcm.buffer]);
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
