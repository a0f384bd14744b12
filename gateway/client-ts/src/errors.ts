// Errors, and when to try again.

/** The server is unreachable, or has refused or failed: the server's own message in one line. */
export class ClientError extends Error {
  /**
   * The server's code of the error, such as `unknown-voice`, or `unreachable`, `connection-lost`, `key-not-sendable`,
   * `protocol`.
   */
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.name = "ClientError";
    this.code = code;
  }
}

/** The server takes no more conversations for now. */
export class ServerBusyError extends ClientError {
  /** Seconds after which to try again. */
  readonly retryAfter: number;

  constructor(code: string, message: string, retryAfter = 1) {
    super(code, message);
    this.name = "ServerBusyError";
    this.retryAfter = retryAfter;
  }
}

const BUSY = new Set(["at-capacity", "too-many-for-key", "draining"]);

/** The error of a code and message of the server. */
export function ofCode(code: string, message: string): ClientError {
  return BUSY.has(code) ? new ServerBusyError(code, message) : new ClientError(code, message);
}

/** The error of a response that is no success. */
export async function ofResponse(response: Response): Promise<ClientError> {
  const problem = (await response.json().catch(() => null)) as { type?: string; detail?: string } | null;
  const code = problem?.type?.split(":").pop() ?? `http-${response.status}`;
  const message = problem?.detail ?? `${response.url} answered ${response.status} ${response.statusText}`;
  const after = response.headers.get("Retry-After");
  if ((response.status === 429 || response.status === 503) && after) {
    return new ServerBusyError(code, message, /^\d+$/.test(after) ? Number(after) : 1);
  }
  return new ClientError(code, message);
}

/** Run `attempt`, and again while the server is busy, for `seconds` in all, at slightly different times. */
export async function whileBusy<T>(seconds: number, signal: AbortSignal | undefined, attempt: () => Promise<T>): Promise<T> {
  const deadline = performance.now() + 1000 * seconds;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ServerBusyError)) throw error;
      const pause = 1000 * error.retryAfter * (0.5 + Math.random());
      if (performance.now() + pause > deadline) throw error;
      await sleep(pause, signal);
    }
  }
}

/** Wait. Throws the signal's reason once it is aborted. */
export async function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal?.addEventListener("abort", done);
  });
  signal?.throwIfAborted();
}
