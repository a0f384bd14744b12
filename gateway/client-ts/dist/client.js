// The client of one server.
import { Conversation, NotOpened } from "./conversation.js";
import { ClientError, ServerBusyError, ofResponse, whileBusy } from "./errors.js";
/** Characters of a WebSocket subprotocol, which carries the key: RFC 7230's token. */
const SENDABLE = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** All methods throw ClientError if the server cannot be reached or refuses, ServerBusyError if it is full. */
export class Client {
    #base;
    #apiKey;
    #waitWhenFull;
    /** @param url of the server, such as `http://127.0.0.1:8998`; a path before the API's is kept. */
    constructor(url, { apiKey, waitWhenFull } = {}) {
        this.#base = new URL(url);
        if (!this.#base.pathname.endsWith("/"))
            this.#base.pathname += "/";
        this.#apiKey = apiKey ?? "";
        this.#waitWhenFull = waitWhenFull ?? 0;
    }
    /** Send a recording and return the answer: `POST /v1/respond` as JSON. */
    async respond(params, { signal } = {}) {
        const response = await this.#respond(params, "application/json", signal);
        const answer = (await response.json());
        return { ...answer, audio: Uint8Array.from(atob(answer.audio), (letter) => letter.charCodeAt(0)) };
    }
    /** As `respond`, and yield a WAV in pieces as the server computes it. */
    async *stream(params, { signal } = {}) {
        const response = await this.#respond({ ...params, stream: true }, "audio/wav", signal);
        const reader = response.body.getReader();
        try {
            for (;;) {
                const { done, value } = await reader.read();
                if (done)
                    return;
                yield value;
            }
        }
        finally {
            await reader.cancel();
        }
    }
    /** Hold a live conversation: the WebSocket `/v1/converse`. Resolves when the agent is ready. */
    async converse(params = {}, { signal, onopen } = {}) {
        if (this.#apiKey && !SENDABLE.test(this.#apiKey)) {
            throw new ClientError("key-not-sendable", "the API key has characters that a WebSocket subprotocol cannot have");
        }
        const url = this.#url("v1/converse");
        url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
        // Browsers cannot set headers of a WebSocket, but a subprotocol.
        const protocols = ["personaplex.v1", ...(this.#apiKey ? [`personaplex.key.${this.#apiKey}`] : [])];
        return whileBusy(this.#waitWhenFull, signal, async () => {
            try {
                return await Conversation.open(url, protocols, params, onopen, signal);
            }
            catch (error) {
                if (!(error instanceof NotOpened))
                    throw error;
                // The status of a refused handshake cannot be read. A server that answers at all has refused it for now: it
                // refuses everything else after the handshake, with an error.
                await this.#fetch("readyz", { signal: signal ?? null });
                throw new ServerBusyError("at-capacity", "the server takes no conversation now");
            }
        });
    }
    /** The preset voices: `GET /v1/voices`. */
    voices() {
        return this.#get("v1/voices");
    }
    /** The preset prompts: `GET /v1/system-prompts`. */
    systemPrompts() {
        return this.#get("v1/system-prompts");
    }
    /** Returns if the server is ready: `GET /readyz`. Throws why it is not. */
    async ready() {
        await this.#get("readyz");
    }
    async #get(path) {
        const response = await this.#fetch(path, { cache: "no-store" });
        if (!response.ok)
            throw await ofResponse(response);
        return (await response.json());
    }
    async #respond(params, accept, signal) {
        const form = new FormData();
        for (const [name, value] of Object.entries(params)) {
            for (const each of Array.isArray(value) ? value : [value]) {
                if (name === "audio" || name === "voice_audio") {
                    if (each !== undefined)
                        form.append(name, each instanceof Blob ? each : new Blob([each]), name);
                }
                else if (each !== undefined)
                    form.append(name, String(each));
            }
        }
        return whileBusy(this.#waitWhenFull, signal, async () => {
            const request = { method: "POST", body: form, headers: { Accept: accept }, signal: signal ?? null };
            const response = await this.#fetch("v1/respond", request);
            if (!response.ok)
                throw await ofResponse(response);
            return response;
        });
    }
    #url(path) {
        return new URL(path, this.#base);
    }
    async #fetch(path, options) {
        const headers = new Headers(options.headers);
        // Headers are Latin-1: of other characters, the UTF-8 bytes.
        if (this.#apiKey)
            headers.set("X-API-Key", String.fromCharCode(...new TextEncoder().encode(this.#apiKey)));
        try {
            return await fetch(this.#url(path), { ...options, headers });
        }
        catch (error) {
            options.signal?.throwIfAborted();
            throw new ClientError("unreachable", `cannot reach ${this.#base.href}: ${error.message}`);
        }
    }
}
