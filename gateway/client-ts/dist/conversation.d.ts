import type { Event, LiveParams, Ready } from "./messages.js";
/** The connection could not be opened. Browsers do not tell why. */
export declare class NotOpened extends Error {
}
/**
 * Send what the user says, iterate over what the agent does.
 *
 * Iteration yields events until `ended`, and throws ClientError if the conversation fails. It must keep up with real
 * time: a WebSocket cannot hold the server back. If the connection is lost and the server allows it, iteration resumes
 * the conversation and yields `ready` again.
 */
export declare class Conversation implements AsyncIterableIterator<Event> {
    #private;
    /** The resolved parameters. */
    readonly ready: Ready;
    private constructor();
    /** @internal Connect, start a conversation and wait until the agent is ready. Throws NotOpened, ClientError. */
    static open(url: URL, protocols: string[], params: LiveParams, onopen?: () => void, signal?: AbortSignal): Promise<Conversation>;
    /** Bytes that are not sent yet. Many mean that the network or the server cannot follow. */
    get unsent(): number;
    /**
     * Send samples within ±1, at the announced rate: as they are recorded, any number. Resolves once there is room for
     * more. Without effect once the conversation is over, iteration tells why, and while a lost connection is replaced.
     */
    send(pcm: Float32Array): Promise<void>;
    /** End the user's audio. The agent's remaining frames and `ended` follow. */
    end(): void;
    /** Close the connection without waiting for the server. Iteration ends. */
    close(): void;
    next(): Promise<IteratorResult<Event, undefined>>;
    /** Called when a loop is left early. */
    return(): Promise<IteratorResult<Event, undefined>>;
    [Symbol.asyncIterator](): this;
}
