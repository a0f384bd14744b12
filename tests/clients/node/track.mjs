// A WAV of 16 bits in real time: pieces of 20 ms at 24 kHz, by the nearest sample, and silence after its end.

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const RATE = 24_000;
const STEP_S = 0.02;
const SAMPLES = RATE * STEP_S;

/** Call `send` with each piece, an Int16Array, for so many seconds; return the seconds that it took. */
export async function speak(path, seconds, send) {
  const wav = await readFile(path);
  const rate = wav.readUInt32LE(24);
  const length = Math.floor((((wav.length - 44) >> 1) * RATE) / rate);
  const began = performance.now();
  for (let step = 0; step * STEP_S < seconds; step++) {
    const piece = new Int16Array(SAMPLES);
    for (let i = 0; i < SAMPLES; i++) {
      const at = step * SAMPLES + i;
      if (at < length) piece[i] = wav.readInt16LE(44 + 2 * Math.floor((at * rate) / RATE));
    }
    await send(piece);
    await sleep(Math.max(began + (step + 1) * STEP_S * 1000 - performance.now(), 0));
  }
  return (performance.now() - began) / 1000;
}
