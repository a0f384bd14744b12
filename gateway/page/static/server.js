// The server of this page: its client, voices, prompts and readiness.

import { Client } from "./client/index.js";
import { ofError } from "./problems.js";

/** The client for the server of this page. @param {string} key the API key, or "" */
export function clientWith(key) {
  return new Client(new URL(".", document.baseURI), { apiKey: key });
}

/** @returns {Promise<{voices: Voices, prompts: object}>} Throws Problem. */
export async function choices(key) {
  const client = clientWith(key);
  const [voices, prompts] = await asking(key, Promise.all([client.voices(), client.systemPrompts()]));
  return { voices, prompts };
}

/** The current voices. They can change while the page is open. Throws Problem. */
export function voicesNow(key) {
  return asking(key, clientWith(key).voices());
}

/** @returns {Promise<"ready" | "draining" | "models" | "unreachable">} */
export async function readiness() {
  try {
    await asking("", clientWith("").ready());
    return "ready";
  } catch (problem) {
    return ["draining", "models", "unreachable"].includes(problem.kind) ? problem.kind : "models";
  }
}

async function asking(key, answer) {
  try {
    return await answer;
  } catch (error) {
    throw ofError(error, key);
  }
}
