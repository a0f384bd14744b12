/** The server is unreachable, or has refused or failed: the server's own message in one line. */
export declare class ClientError extends Error {
    /**
     * The server's code of the error, such as `unknown-voice`, or `unreachable`, `connection-lost`, `key-not-sendable`,
     * `protocol`.
     */
    readonly code: string;
    constructor(code: string, message: string);
}
/** The server takes no more conversations for now. */
export declare class ServerBusyError extends ClientError {
    /** Seconds after which to try again. */
    readonly retryAfter: number;
    constructor(code: string, message: string, retryAfter?: number);
}
/** The error of a code and message of the server. */
export declare function ofCode(code: string, message: string): ClientError;
/** The error of a response that is no success. */
export declare function ofResponse(response: Response): Promise<ClientError>;
/** Run `attempt`, and again while the server is busy, for `seconds` in all, at slightly different times. */
export declare function whileBusy<T>(seconds: number, signal: AbortSignal | undefined, attempt: () => Promise<T>): Promise<T>;
/** Wait. Throws the signal's reason once it is aborted. */
export declare function sleep(milliseconds: number, signal?: AbortSignal): Promise<void>;
