// Requests of the server's voices, prompts and readiness.

import { Problem, ofResponse } from "./problems.js";

/** URL of a path of the server, relative to this page. */
export function address(path) {
  return new URL(path, document.baseURI);
}

/** WebSocket URL of a path of the server. */
export function socketAddress(path) {
  const url = address(path);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

/** @returns {Promise<{voices: Voices, prompts: object}>} Throws Problem. */
export async function choices(key) {
  const [voices, prompts] = await Promise.all([voicesNow(key), get("v1/system-prompts", key)]);
  return { voices, prompts };
}

/**
 * The current voices. They can change while the page is open.
 *
 * @typedef {{default: string, voices: {name: string, seconds: number, origin: "built-in" | "added"}[]}} Voices
 * @returns {Promise<Voices>} Throws Problem.
 */
export function voicesNow(key) {
  return get("v1/voices", key);
}

/** @returns {Promise<"ready" | "draining" | "models" | "unreachable">} */
export async function readiness() {
  try {
    await get("readyz", "");
    return "ready";
  } catch (problem) {
    return ["draining", "models", "unreachable"].includes(problem.kind) ? problem.kind : "models";
  }
}

async function get(path, key) {
  let response;
  try {
    response = await fetch(address(path), { headers: key ? { "X-API-Key": key } : {}, cache: "no-store" });
  } catch {
    throw new Problem("unreachable");
  }
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null) throw ofResponse(response, body, key);
  return body;
}
