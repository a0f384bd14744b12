// `LiveWS` and `TranscriptGrouper` of openai-node. Usage: openai_live.mjs URL WAV SECONDS. Prints one line of JSON.

import OpenAI from "openai";
import { TranscriptGrouper } from "openai/lib/live/transcript-grouper";
import { LiveWS } from "openai/resources/live/ws";
import { speak } from "./track.mjs";

const [url, path, seconds] = process.argv.slice(2);
const found = { errors: [], audio_seconds: 0, text: "", types: {}, segments: [], closed: null, code: null };
const grouper = new TranscriptGrouper();
grouper.on("segment.closed", ({ segment, reason }) => found.segments.push([segment.text, reason]));
const live = new LiveWS(new OpenAI({ apiKey: "K", baseURL: url }));
// Before the socket is open, events are queued.
live.send({ type: "session.start", session: { model: "gpt-live-1", instructions: "You are Ana." } });

const over = new Promise((resolve) => {
  live.on("error", (error) => found.errors.push(String(error.message)));
  live.on("close", (code) => {
    found.code = code;
    resolve();
  });
});
const started = new Promise((resolve) => live.on("session.started", resolve));
live.on("event", (event) => {
  found.types[event.type] = (found.types[event.type] ?? 0) + 1;
  grouper.push(event);
  if (event.type === "session.output_audio.delta") found.audio_seconds += Buffer.from(event.delta, "base64").length / 48_000;
  else if (event.type === "session.output_transcript.delta") found.text += event.delta;
  else if (event.type === "session.closed") found.closed = event.reason;
});

await Promise.race([started, over]);
if (found.code === null) {
  found.seconds = await speak(path, Number(seconds), (piece) => {
    if (found.code === null) live.send({ type: "session.input_audio.append", audio: Buffer.from(piece.buffer).toString("base64") });
  });
  if (found.code === null) live.send({ type: "session.close" });
}
await over;
grouper.close();
console.log(JSON.stringify(found));
