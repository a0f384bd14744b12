import { Conversation } from "./conversation.js";
import type { LiveParams, RespondAnswer, RespondParams, SystemPrompts, Voices } from "./messages.js";
export interface ClientOptions {
    /** API key that requests carry. */
    apiKey?: string | undefined;
    /** Seconds for which to try again while every slot is taken. 0, the default: throw ServerBusyError. */
    waitWhenFull?: number | undefined;
}
export interface CallOptions {
    /** Gives up: the call then throws the signal's reason. */
    signal?: AbortSignal | undefined;
    /** Called when the connection is open and the models are about to get the prompt. */
    onopen?: (() => void) | undefined;
}
/** All methods throw ClientError if the server cannot be reached or refuses, ServerBusyError if it is full. */
export declare class Client {
    #private;
    /** @param url of the server, such as `http://127.0.0.1:8998`; a path before the API's is kept. */
    constructor(url: string | URL, { apiKey, waitWhenFull }?: ClientOptions);
    /** Send a recording and return the answer: `POST /v1/respond` as JSON. */
    respond(params: RespondParams, { signal }?: Pick<CallOptions, "signal">): Promise<RespondAnswer>;
    /** As `respond`, and yield a WAV in pieces as the server computes it. */
    stream(params: Omit<RespondParams, "include">, { signal }?: Pick<CallOptions, "signal">): AsyncGenerator<Uint8Array<ArrayBuffer>, void>;
    /** Hold a live conversation: the WebSocket `/v1/converse`. Resolves when the agent is ready. */
    converse(params?: LiveParams, { signal, onopen }?: CallOptions): Promise<Conversation>;
    /** The preset voices: `GET /v1/voices`. */
    voices(): Promise<Voices>;
    /** The preset prompts: `GET /v1/system-prompts`. */
    systemPrompts(): Promise<SystemPrompts>;
    /** Returns if the server is ready: `GET /readyz`. Throws why it is not. */
    ready(): Promise<void>;
}
