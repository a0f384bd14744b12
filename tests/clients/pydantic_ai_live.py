"""An agent of pydantic-ai with `OpenAILiveModel`. Runs in an environment of its own.

Usage: pydantic_ai_live.py URL WAV SECONDS. Sends the WAV and then silence in real time. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import wave
from array import array
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.realtime.openai_live import OpenAILiveModel

RATE = 24_000
STEP_S = 0.02


def track(path: str) -> bytes:
    """The WAV at 24 kHz, by the nearest sample, which is enough for a model that is not real."""
    with wave.open(path) as sound:
        rate, samples = sound.getframerate(), array("h", sound.readframes(sound.getnframes()))
    return array("h", (samples[at * rate // RATE] for at in range(len(samples) * RATE // rate))).tobytes()


async def main(url: str, path: str, seconds: float) -> None:
    found: dict[str, Any] = {"events": [], "audio_seconds": 0.0, "transcripts": []}
    model = OpenAILiveModel("gpt-live-1", provider=OpenAIProvider(base_url=url, api_key="K"))
    async with Agent(instructions="You are Ana.").realtime(model).session() as session:

        async def play() -> None:
            async for data in session.stream_audio():
                found["audio_seconds"] += len(data) / 2 / RATE

        async def read() -> None:
            async for event in session:
                found["events"].append(type(event).__name__)

        async def texts() -> None:
            async for part in session.stream_transcripts():
                found["transcripts"].append([part.speaker, part.transcript])

        reading = [asyncio.create_task(work()) for work in (play, read, texts)]
        data, size = track(path), 2 * round(RATE * STEP_S)
        began = due = time.monotonic()
        while time.monotonic() - began < seconds:
            at = size * round((due - began) / STEP_S)
            await session.send_audio(data[at : at + size].ljust(size, b"\0"))
            due += STEP_S
            await asyncio.sleep(max(due - time.monotonic(), 0))
        found["seconds"] = time.monotonic() - began
    await asyncio.wait(reading, timeout=5)
    found["failures"] = [repr(task.exception()) for task in reading if task.done() and task.exception()]
    print(json.dumps(found))


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
