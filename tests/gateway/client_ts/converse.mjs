// Runs one request of the TypeScript client, as JSON in the first argument says; prints its outcome as JSON.

import { setTimeout as sleep } from "node:timers/promises";
import { Client, ClientError } from "personaplex-client";

const { url, options, call, params, frames, wav, leave, pause } = JSON.parse(process.argv[2]);
const client = new Client(url, options);
const floats = (pcm) => Buffer.from(pcm.buffer).toString("base64");

async function converse() {
  const conversation = await client.converse(params);
  const talk = async () => {
    for (let u = 0; u < frames; u++) {
      await conversation.send(Float32Array.from({ length: 1920 }, (_, i) => Math.sin((u * 1920 + i) / 20) / 3));
      await sleep(pause);
    }
    conversation.end();
  };
  const talking = talk();
  const events = [];
  for await (const event of conversation) {
    events.push(event.type === "audio" ? { ...event, pcm: floats(event.pcm) } : event);
    if (leave && event.type === "audio") break;
  }
  await talking;
  return { ready: conversation.ready, events };
}

const calls = {
  converse,
  respond: async () => {
    const answer = await client.respond({ ...params, audio: Buffer.from(wav, "base64") });
    return { ...answer, audio: Buffer.from(answer.audio).toString("base64") };
  },
  stream: async () => {
    const pieces = [];
    for await (const piece of client.stream({ ...params, audio: Buffer.from(wav, "base64") })) pieces.push(piece);
    return { pieces: pieces.length, audio: Buffer.concat(pieces).toString("base64") };
  },
  voices: () => client.voices(),
  systemPrompts: () => client.systemPrompts(),
  ready: () => client.ready(),
  abort: async () => {
    const controller = new AbortController();
    return client.converse(params, { signal: controller.signal, onopen: () => controller.abort() });
  },
};

try {
  console.log(JSON.stringify({ answer: (await calls[call]()) ?? null }));
} catch (error) {
  const { name, code, message, retryAfter } = error;
  console.log(JSON.stringify({ error: { name, code, message, retryAfter, ours: error instanceof ClientError } }));
}
