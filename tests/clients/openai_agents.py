"""A `RealtimeRunner` of openai-agents. Runs in an environment of its own.

Usage: openai_agents.py URL WAV SECONDS. Sends the WAV and then silence in real time. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import wave
from array import array
from typing import Any

from agents import set_tracing_disabled
from agents.realtime import RealtimeAgent, RealtimeRunner

RATE = 24_000
STEP_S = 0.02


def track(path: str) -> bytes:
    """The WAV at 24 kHz, by the nearest sample, which is enough for a model that is not real."""
    with wave.open(path) as sound:
        rate, samples = sound.getframerate(), array("h", sound.readframes(sound.getnframes()))
    return array("h", (samples[at * rate // RATE] for at in range(len(samples) * RATE // rate))).tobytes()


async def main(url: str, path: str, seconds: float) -> None:
    set_tracing_disabled(True)
    found: dict[str, Any] = {"errors": [], "audio_seconds": 0.0, "bursts": 0, "interrupted": 0, "closed": False}
    runner = RealtimeRunner(RealtimeAgent(name="Ana", instructions="You are Ana."))
    session = await runner.run(model_config={"url": url, "api_key": "K"})
    async with session:

        async def listen() -> None:
            async for event in session:
                if event.type == "audio":
                    found["audio_seconds"] += len(event.audio.data) / 2 / RATE
                elif event.type == "audio_interrupted":
                    found["interrupted"] += 1
                elif event.type == "agent_end":
                    found["bursts"] += 1
                elif event.type == "error":
                    found["errors"].append(str(event.error))
                elif event.type == "history_updated":
                    found["history"] = [item.model_dump(mode="json") for item in event.history]
            found["closed"] = True

        listening = asyncio.create_task(listen())
        data, size = track(path), 2 * round(RATE * STEP_S)
        began = due = time.monotonic()
        while time.monotonic() - began < seconds and not listening.done():
            at = size * round((due - began) / STEP_S)
            await session.send_audio(data[at : at + size].ljust(size, b"\0"))
            due += STEP_S
            await asyncio.sleep(max(due - time.monotonic(), 0))
        found["seconds"] = time.monotonic() - began
        listening.cancel()
    messages = [item for item in found.pop("history", []) if item.get("role") == "assistant"]
    found["assistant"] = [part.get("transcript") for item in messages for part in item["content"]]
    print(json.dumps(found))


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
