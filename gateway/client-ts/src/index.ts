// Client for PersonaPlex servers, for browsers and Node.

export { Client } from "./client.js";
export type { CallOptions, ClientOptions } from "./client.js";
export { Conversation } from "./conversation.js";
export { ClientError, ServerBusyError } from "./errors.js";
export type {
  AgentAudio,
  AgentText,
  Ended,
  Event,
  LiveParams,
  PcmFormat,
  PersonaParams,
  Ready,
  RespondAnswer,
  RespondParams,
  Stats,
  SystemPrompts,
  Timings,
  Voices,
  Warning,
} from "./messages.js";
