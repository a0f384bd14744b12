// Error messages for the user: what happened and what to do.

const WORDS = {
  insecure: [
    "This page is not secure",
    "Browsers give the microphone only to pages that came over HTTPS, or from this very machine (localhost). " +
      "Open this page with https:// in front.",
  ],
  unsupported: ["This browser cannot do it", "A current Chrome, Edge, Firefox or Safari can."],
  denied: [
    "The microphone is blocked",
    "Allow it for this page, in the site settings beside the address bar, then start again.",
  ],
  dismissed: ["The microphone was not allowed", "Start again, and choose “Allow” when the browser asks."],
  missing: ["There is no microphone", "Connect one or switch it on, then start again."],
  busy: ["The microphone cannot be used", "Another program may be using it. Close that one, then start again."],
  sound: ["The sound could not be started", "Check this machine's sound output, then start again."],
  unreachable: ["The server cannot be reached", "Check your connection, then try again."],
  full: ["All calls are taken", "The server holds as many calls as it can."],
  "key-full": ["Your calls are all taken", "Your API key holds as many calls as it may. End one, or wait."],
  draining: ["The server is shutting down", "It takes no new calls."],
  models: ["The models are not ready", "The server is up, but cannot answer yet. Try again in a moment."],
  unauthorized: ["An API key is needed", "Enter the key you were given, then start again."],
  "wrong-key": ["This API key is not known", "Enter the key you were given, then start again."],
  "unfit-key": ["This API key cannot be used here", "It has characters that a browser cannot send with a call."],
  refused: ["The server refused the call", ""],
  lost: [
    "The connection was lost",
    "The call is over and cannot be continued. Its recording and transcript are still here.",
  ],
  drained: ["The server shut down", "It waited as long as it could, then ended the call."],
  idle: ["No audio arrived for too long", "The server ended the call."],
  max_duration: ["The call reached its longest duration", "You can start another one."],
  slow_client: ["Your connection is too slow", "The agent's voice piled up on the server, which ended the call."],
  engine: ["The models failed", "The server ended the call. Try again in a moment."],
  client_error: ["The server refused the call", ""],
  error: ["The server failed", "It ended the call. Try again in a moment."],
};

// Errors for which the server's message adds only the waiting time.
const PASSING = new Set(["full", "key-full", "draining"]);

// Errors that an API key solves.
const KEYS = new Set(["unauthorized", "wrong-key", "unfit-key"]);

// Errors whose message is worded for programmers.
const TECHNICAL = new Set(["unreachable", "connection-lost", "key-not-sendable", "unknown-conversation"]);

const CODES = {
  at_capacity: "full",
  connection_lost: "lost",
  key_not_sendable: "unfit-key",
  too_many_for_key: "key-full",
  draining: "draining",
  drained: "drained",
  unauthorized: "unauthorized",
  unknown_conversation: "lost",
  engine_unavailable: "models",
  engine_error: "engine",
  internal_error: "error",
};

export class Problem extends Error {
  /** @param {string} kind a key of WORDS @param {string} detail the server's message, if it helps */
  constructor(kind, detail = "") {
    const [title, advice] = WORDS[kind] ?? WORDS.error;
    super(title);
    this.kind = kind;
    this.title = title;
    this.asksForKey = KEYS.has(kind);
    this.advice = [advice, PASSING.has(kind) ? wait(detail) : sentence(detail)].filter(Boolean).join(" ");
  }
}

/** The error for a failed start of the microphone. */
export async function ofMicrophone(error) {
  if (error instanceof Problem) return error;
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new Problem((await remembered()) === "denied" ? "denied" : "dismissed");
    case "NotFoundError":
    case "OverconstrainedError":
      return new Problem("missing");
    case "NotReadableError":
    case "AbortError":
      return new Problem("busy");
    default:
      return new Problem("sound", error.message);
  }
}

/** The error for an error of the client, of requests with `key`. */
export function ofError(error, key) {
  if (error.code === "unauthorized") return new Problem(key ? "wrong-key" : "unauthorized");
  return new Problem(kindOf(error.code) ?? "refused", TECHNICAL.has(error.code) ? "" : error.message);
}

/** The error for the end of a call by the server; null for an end that the user asked for. */
export function ofEnd({ reason }) {
  return reason === "completed" ? null : new Problem(kindOf(reason) ?? "error");
}

function kindOf(code) {
  const name = (code ?? "").replaceAll("-", "_");
  return CODES[name] ?? (name in WORDS ? name : null);
}

async function remembered() {
  try {
    return (await navigator.permissions.query({ name: "microphone" })).state;
  } catch {
    return "unknown";
  }
}

function wait(detail) {
  const seconds = detail.match(/try again in (\d+) s/)?.[1];
  return seconds ? `Try again in about ${seconds} seconds.` : "Try again in a while.";
}

/** A server message as a sentence. */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  const begun = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
