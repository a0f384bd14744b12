// `OpenAIRealtimeWS` of openai-node, which connects with TLS only. Usage: openai_realtime.mjs URL WAV SECONDS.
// Prints one line of JSON.

import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { speak } from "./track.mjs";

const [url, path, seconds] = process.argv.slice(2);
const found = { errors: [], audio_seconds: 0, bursts: 0, text: "" };
const realtime = new OpenAIRealtimeWS({ model: "gpt-realtime" }, new OpenAI({ apiKey: "K", baseURL: url }));
realtime.on("error", (error) => found.errors.push(String(error.message)));
realtime.on("response.output_audio.delta", (event) => {
  found.audio_seconds += Buffer.from(event.delta, "base64").length / 48_000;
});
realtime.on("response.output_audio_transcript.delta", (event) => (found.text += event.delta));
realtime.on("response.done", () => found.bursts++);
await new Promise((resolve) => realtime.socket.on("open", resolve));
realtime.send({ type: "session.update", session: { type: "realtime", instructions: "You are Ana." } });
found.seconds = await speak(path, Number(seconds), (piece) => {
  realtime.send({ type: "input_audio_buffer.append", audio: Buffer.from(piece.buffer).toString("base64") });
});
realtime.close();
console.log(JSON.stringify(found));
process.exit(0);
