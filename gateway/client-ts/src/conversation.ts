// A live conversation: the WebSocket `/v1/converse`.

import { ClientError, ofCode, sleep } from "./errors.js";
import type { Event, LiveParams, PcmFormat, Ready } from "./messages.js";
import { decode, encode } from "./pcm.js";

const NORMAL = 1000;
const TRY_AGAIN_LATER = 1013;
const SERVICE_RESTART = 1012;
/** Of bytes that are not sent yet: about a second of speech. */
const MOST_UNSENT = 96_000;
const POLL_MS = 20;

type Message = Ready | Event | { type: "error"; code: string; message: string };

/** The connection could not be opened. Browsers do not tell why. */
export class NotOpened extends Error {}

/**
 * Send what the user says, iterate over what the agent does.
 *
 * Iteration yields events until `ended`, and throws ClientError if the conversation fails. It must keep up with real
 * time: a WebSocket cannot hold the server back.
 */
export class Conversation implements AsyncIterableIterator<Event> {
  /** The resolved parameters. */
  readonly ready: Ready;

  #socket: Socket;
  #format: PcmFormat;

  private constructor(socket: Socket, ready: Ready) {
    this.ready = ready;
    this.#socket = socket;
    this.#format = ready.audio.format;
  }

  /** @internal Connect, start a conversation and wait until the agent is ready. Throws NotOpened, ClientError. */
  static async open(
    url: URL,
    protocols: string[],
    params: LiveParams,
    onopen?: () => void,
    signal?: AbortSignal,
  ): Promise<Conversation> {
    signal?.throwIfAborted();
    const socket = new Socket(url, protocols, params, onopen);
    const abort = () => socket.close();
    signal?.addEventListener("abort", abort);
    try {
      const first = await socket.next();
      if (first?.type === "ready") return new Conversation(socket, first);
      throw new ClientError("protocol", `expected \`ready\` first, got ${first?.type ?? "the end"}`);
    } catch (error) {
      socket.close();
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Bytes that are not sent yet. Many mean that the network or the server cannot follow. */
  get unsent(): number {
    return this.#socket.unsent;
  }

  /**
   * Send samples within ±1, at the announced rate: as they are recorded, any number. Resolves once there is room for
   * more. Without effect once the conversation is over; iteration tells why.
   */
  async send(pcm: Float32Array): Promise<void> {
    this.#socket.send(encode(pcm, this.#format));
    while (this.#socket.unsent > MOST_UNSENT) await sleep(POLL_MS);
  }

  /** End the user's audio. The agent's remaining frames and `ended` follow. */
  end(): void {
    this.#socket.send('{"type":"end"}');
  }

  /** Close the connection without waiting for the server. Iteration ends. */
  close(): void {
    this.#socket.close();
  }

  async next(): Promise<IteratorResult<Event, undefined>> {
    const event = await this.#socket.next();
    return event === undefined || event.type === "ready"
      ? { done: true, value: undefined }
      : { done: false, value: event };
  }

  /** Called when a loop is left early. */
  async return(): Promise<IteratorResult<Event, undefined>> {
    this.close();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}

/** The connection, and the events that wait to be read. */
class Socket {
  #socket: WebSocket;
  #format: PcmFormat = "pcm_s16le";
  #frames = 0;
  #events: (Ready | Event)[] = [];
  #waiting: (() => void) | undefined;
  #opened = false;
  #over = false;
  #error: Error | undefined;

  constructor(url: URL, protocols: string[], params: LiveParams, onopen?: () => void) {
    this.#socket = new WebSocket(url, protocols);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => {
      this.#opened = true;
      this.#socket.send(JSON.stringify({ ...params, type: "start" }));
      onopen?.();
    };
    this.#socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.#closed(code, reason);
  }

  get unsent(): number {
    return this.#socket.readyState === WebSocket.OPEN ? this.#socket.bufferedAmount : 0;
  }

  send(data: string | ArrayBuffer): void {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(data);
  }

  close(): void {
    this.#socket.close(NORMAL);
    this.#finish();
  }

  /** The next event; undefined at the end. Throws why the conversation failed. */
  async next(): Promise<Ready | Event | undefined> {
    while (this.#events.length === 0 && !this.#over) {
      await new Promise<void>((resolve) => (this.#waiting = resolve));
    }
    const event = this.#events.shift();
    if (event !== undefined) return event;
    const error = this.#error;
    this.#error = undefined;
    if (error !== undefined) throw error;
    return undefined;
  }

  #receive(data: string | ArrayBuffer): void {
    if (this.#over) return;
    if (typeof data !== "string") {
      this.#put({ type: "audio", index: this.#frames++, pcm: decode(data, this.#format) });
      return;
    }
    const message = JSON.parse(data) as Message;
    if (message.type === "error") {
      // `ended` may follow. The error says more.
      this.#finish(ofCode(message.code, message.message));
      return;
    }
    if (message.type === "ready") this.#format = message.audio.format;
    this.#put(message);
    if (message.type === "ended") this.#finish();
  }

  #put(event: Ready | Event): void {
    this.#events.push(event);
    this.#wake();
  }

  #closed(code: number, reason: string): void {
    if (!this.#opened) this.#finish(new NotOpened());
    else if (code === TRY_AGAIN_LATER) this.#finish(ofCode("at-capacity", reason || "the server is full"));
    else if (code === SERVICE_RESTART) this.#finish(ofCode("draining", reason || "the server is shutting down"));
    else this.#finish(new ClientError("connection-lost", `the connection was lost: ${reason || `close code ${code}`}`));
  }

  #finish(error?: Error): void {
    if (this.#over) return;
    this.#over = true;
    this.#error = error;
    this.#wake();
  }

  #wake(): void {
    this.#waiting?.();
    this.#waiting = undefined;
  }
}
