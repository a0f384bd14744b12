// A live conversation: the WebSocket `/v1/converse`.
import { ClientError, ofCode, sleep } from "./errors.js";
import { decode, encode } from "./pcm.js";
const NORMAL = 1000;
/** Of a connection that ended without a close frame. */
const LOST = 1006;
const TRY_AGAIN_LATER = 1013;
const SERVICE_RESTART = 1012;
/** Of bytes that are not sent yet: about a second of speech. */
const MOST_UNSENT = 96_000;
const POLL_MS = 20;
/** In place of a resume token, it tells the server that this client can resume a conversation. */
const NEW_TOKEN = "new";
/** Between two attempts to resume a conversation, and for the opening handshake of one. */
const RECONNECT_MS = 250;
const ATTEMPT_MS = 5000;
/** The connection could not be opened. Browsers do not tell why. */
export class NotOpened extends Error {
}
/**
 * Send what the user says, iterate over what the agent does.
 *
 * Iteration yields events until `ended`, and throws ClientError if the conversation fails. It must keep up with real
 * time: a WebSocket cannot hold the server back. If the connection is lost and the server allows it, iteration resumes
 * the conversation and yields `ready` again.
 */
export class Conversation {
    /** The resolved parameters. */
    ready;
    #socket;
    #format;
    constructor(socket, ready) {
        this.ready = ready;
        this.#socket = socket;
        this.#format = ready.audio.format;
    }
    /** @internal Connect, start a conversation and wait until the agent is ready. Throws NotOpened, ClientError. */
    static async open(url, protocols, params, onopen, signal) {
        signal?.throwIfAborted();
        const socket = new Socket(url, protocols, params, onopen);
        const abort = () => socket.close();
        signal?.addEventListener("abort", abort);
        try {
            const first = await socket.next();
            if (first?.type === "ready")
                return new Conversation(socket, first);
            throw new ClientError("protocol", `expected \`ready\` first, got ${first?.type ?? "the end"}`);
        }
        catch (error) {
            socket.close();
            signal?.throwIfAborted();
            throw error;
        }
        finally {
            signal?.removeEventListener("abort", abort);
        }
    }
    /** Bytes that are not sent yet. Many mean that the network or the server cannot follow. */
    get unsent() {
        return this.#socket.unsent;
    }
    /**
     * Send samples within ±1, at the announced rate: as they are recorded, any number. Resolves once there is room for
     * more. Without effect once the conversation is over, iteration tells why, and while a lost connection is replaced.
     */
    async send(pcm) {
        this.#socket.send(encode(pcm, this.#format));
        while (this.#socket.unsent > MOST_UNSENT)
            await sleep(POLL_MS);
    }
    /** End the user's audio. The agent's remaining frames and `ended` follow. */
    end() {
        this.#socket.end();
    }
    /** Close the connection without waiting for the server. Iteration ends. */
    close() {
        this.#socket.close();
    }
    async next() {
        const event = await this.#socket.next();
        return event === undefined ? { done: true, value: undefined } : { done: false, value: event };
    }
    /** Called when a loop is left early. */
    async return() {
        this.close();
        return { done: true, value: undefined };
    }
    [Symbol.asyncIterator]() {
        return this;
    }
}
/** The connection, replaced if it is lost and the server allows that, and the events that wait to be read. */
class Socket {
    #url;
    #protocols;
    #params;
    #socket;
    #format = "pcm_s16le";
    #frames = 0;
    #events = [];
    #waiting;
    #opened = false;
    #resume = null;
    /** Until when to try to replace the connection; undefined while there is one. */
    #deadline;
    #timer;
    #ended = false;
    #over = false;
    #error;
    constructor(url, protocols, params, onopen) {
        this.#url = url;
        this.#protocols = protocols;
        this.#params = params;
        this.#socket = this.#connect(NEW_TOKEN, params, onopen);
    }
    get unsent() {
        return this.#socket.readyState === WebSocket.OPEN ? this.#socket.bufferedAmount : 0;
    }
    send(data) {
        if (this.#socket.readyState === WebSocket.OPEN)
            this.#socket.send(data);
    }
    end() {
        this.#ended = true;
        this.send('{"type":"end"}');
    }
    close() {
        this.#socket.close(NORMAL);
        this.#finish();
    }
    /** The next event; undefined at the end. Throws why the conversation failed. */
    async next() {
        while (this.#events.length === 0 && !this.#over) {
            await new Promise((resolve) => (this.#waiting = resolve));
        }
        const event = this.#events.shift();
        if (event !== undefined)
            return event;
        const error = this.#error;
        this.#error = undefined;
        if (error !== undefined)
            throw error;
        return undefined;
    }
    #connect(token, params, onopen) {
        const socket = new WebSocket(this.#url, [...this.#protocols, `personaplex.resume.${token}`]);
        socket.binaryType = "arraybuffer";
        socket.onopen = () => {
            clearTimeout(this.#timer);
            this.#opened = true;
            socket.send(JSON.stringify({ ...params, type: "start" }));
            onopen?.();
        };
        socket.onmessage = ({ data }) => this.#receive(data);
        socket.onclose = ({ code, reason }) => this.#closed(code, reason);
        return socket;
    }
    #receive(data) {
        if (this.#over)
            return;
        if (typeof data !== "string") {
            this.#put({ type: "audio", index: this.#frames++, pcm: decode(data, this.#format) });
            return;
        }
        const message = JSON.parse(data);
        if (message.type === "error") {
            // `ended` may follow. The error says more.
            this.#finish(ofCode(message.code, message.message));
            return;
        }
        if (message.type === "ready")
            this.#begin(message);
        this.#put(message);
        if (message.type === "ended")
            this.#finish();
    }
    #begin(ready) {
        this.#deadline = undefined;
        this.#format = ready.audio.format;
        this.#resume = ready.resume;
        this.#frames = ready.index;
        if (this.#ended)
            this.end();
    }
    #put(event) {
        this.#events.push(event);
        this.#wake();
    }
    #closed(code, reason) {
        if (this.#over)
            return;
        if (code === LOST && this.#resume)
            this.#replace(this.#resume);
        else if (!this.#opened)
            this.#finish(new NotOpened());
        else if (code === TRY_AGAIN_LATER)
            this.#finish(ofCode("at-capacity", reason || "the server is full"));
        else if (code === SERVICE_RESTART)
            this.#finish(ofCode("draining", reason || "the server is shutting down"));
        else
            this.#finish(new ClientError("connection-lost", `the connection was lost: ${reason || `close code ${code}`}`));
    }
    /** Resume the conversation over another connection: at once, and again after an attempt that failed. */
    #replace({ token, seconds }) {
        const now = performance.now();
        const pause = this.#deadline === undefined ? 0 : RECONNECT_MS;
        this.#deadline ??= now + 1000 * seconds;
        if (now > this.#deadline) {
            this.#finish(new ClientError("connection-lost", "the connection was lost and could not be replaced in time"));
            return;
        }
        const { audio, on_gap } = this.#params;
        this.#timer = setTimeout(() => {
            this.#socket = this.#connect(token, { audio, on_gap });
            this.#timer = setTimeout(() => this.#socket.close(), ATTEMPT_MS);
        }, pause);
    }
    #finish(error) {
        if (this.#over)
            return;
        clearTimeout(this.#timer);
        this.#over = true;
        this.#error = error;
        this.#wake();
    }
    #wake() {
        this.#waiting?.();
        this.#waiting = undefined;
    }
}
