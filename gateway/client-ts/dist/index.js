// Client for PersonaPlex servers, for browsers and Node.
export { Client } from "./client.js";
export { Conversation } from "./conversation.js";
export { ClientError, ServerBusyError } from "./errors.js";
