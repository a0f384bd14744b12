// A `RealtimeSession` of @openai/agents-realtime. Usage: openai_agents.mjs URL WAV SECONDS. Prints one line of JSON.

import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";
import { speak } from "./track.mjs";

const [url, path, seconds] = process.argv.slice(2);
const found = { errors: [], audio_seconds: 0, bursts: 0, interrupted: 0, assistant: [] };
const agent = new RealtimeAgent({ name: "Ana", instructions: "You are Ana." });
const transport = new OpenAIRealtimeWebSocket({ url });
const session = new RealtimeSession(agent, { transport, tracingDisabled: true });
session.on("audio", (event) => (found.audio_seconds += event.data.byteLength / 48_000));
session.on("audio_interrupted", () => found.interrupted++);
session.on("agent_end", () => found.bursts++);
session.on("error", (event) => found.errors.push(JSON.stringify(event.error?.error ?? String(event.error))));
session.on("history_updated", (history) => {
  const messages = history.filter((item) => item.type === "message" && item.role === "assistant");
  found.assistant = messages.flatMap((item) => item.content.map((part) => part.transcript));
});
await session.connect({ apiKey: "K", url });
found.seconds = await speak(path, Number(seconds), (piece) => session.sendAudio(piece.buffer));
session.close();
console.log(JSON.stringify(found));
process.exit(0);
