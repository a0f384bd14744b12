// Level display of both voices: user above the line, agent below, one bar per 80 ms.

const PITCH = 6;
const BAR = 3;
const BLOCK_SECONDS = 0.08;
const FLOOR = -56;
const CEILING = -8;

export const YOU = 0;
export const AGENT = 1;

/** Level of samples on a decibel scale, 0 (inaudible) to 1. */
export function loudness(pcm) {
  let sum = 0;
  for (let i = 0; i < pcm.length; i++) sum += pcm[i] * pcm[i];
  const decibels = 10 * Math.log10(sum / Math.max(1, pcm.length) + 1e-12);
  return Math.min(1, Math.max(0, (decibels - FLOOR) / (CEILING - FLOOR)));
}

export class Ribbon {
  #canvas;
  #sides = [[], []];
  #colours = [];
  #frame = 0;
  #drawn = 0;
  #now = null;
  #still = matchMedia("(prefers-reduced-motion: reduce)");

  constructor(canvas) {
    this.#canvas = canvas;
    this.#readColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#repaint());
    new ResizeObserver(() => this.#repaint()).observe(canvas);
  }

  /** Add a block of `level` 0..1 that starts at `at` seconds. */
  add(side, at, level) {
    this.#sides[side].push({ at, level });
  }

  clear() {
    this.#sides = [[], []];
    this.#repaint();
  }

  /** Start the animation; `now` returns the time in seconds. */
  flow(now) {
    this.#now = now;
    const step = (time) => {
      this.#frame = requestAnimationFrame(step);
      if (time - this.#drawn < (this.#still.matches ? 1000 : 30)) return;
      this.#drawn = time;
      this.#paint();
    };
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(step);
  }

  /** Stop the animation and show the whole call. */
  rest() {
    cancelAnimationFrame(this.#frame);
    this.#now = null;
    this.#repaint();
  }

  #repaint() {
    this.#readColours();
    this.#paint();
  }

  #readColours() {
    const style = getComputedStyle(this.#canvas);
    this.#colours = ["--you", "--agent", "--line"].map((name) => style.getPropertyValue(name).trim());
  }

  #paint() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width || !height) return;
    const scale = window.devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale) || this.#canvas.height !== Math.round(height * scale)) {
      this.#canvas.width = Math.round(width * scale);
      this.#canvas.height = Math.round(height * scale);
    }
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = this.#colours[2];
    pen.fillRect(0, height / 2 - 0.5, width, 1);
    const bars = this.#now ? this.#flowing(width) : this.#whole(width);
    for (const { side, x, level } of bars) {
      if (level <= 0) continue;
      pen.fillStyle = this.#colours[side];
      const tall = Math.max(BAR, level * (height / 2 - 6));
      const top = side === YOU ? height / 2 - 3 - tall : height / 2 + 3;
      pen.beginPath();
      pen.roundRect(x, top, BAR, tall, BAR / 2);
      pen.fill();
    }
  }

  #flowing(width) {
    const now = this.#now() - 2 * BLOCK_SECONDS;
    const oldest = now - ((width + PITCH) / PITCH) * BLOCK_SECONDS;
    return this.#sides.flatMap((blocks, side) => {
      let from = blocks.length;
      while (from > 0 && blocks[from - 1].at > oldest) from--;
      return blocks.slice(from).map(({ at, level }) => {
        return { side, level, x: width - ((now - at) / BLOCK_SECONDS) * PITCH };
      });
    });
  }

  #whole(width) {
    const drawn = this.#sides.filter((blocks) => blocks.length);
    if (!drawn.length) return [];
    const start = Math.min(...drawn.map((blocks) => blocks[0].at));
    const end = Math.max(...drawn.map((blocks) => blocks.at(-1).at));
    const bars = (end - start) / BLOCK_SECONDS + 1;
    const each = BLOCK_SECONDS * Math.ceil(bars / Math.max(1, Math.floor(width / PITCH)));
    const count = Math.floor((end - start) / each + 0.5) + 1;
    const pitch = Math.min(width / count, 2 * PITCH);
    return this.#sides.flatMap((blocks, side) => {
      const levels = new Array(count).fill(0);
      for (const { at, level } of blocks) {
        const k = Math.min(count - 1, Math.floor((at - start) / each + 0.5));
        levels[k] = Math.max(levels[k], level);
      }
      return levels.map((level, k) => ({ side, level, x: (width - count * pitch) / 2 + k * pitch }));
    });
  }
}
