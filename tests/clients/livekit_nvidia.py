"""`livekit-plugins-nvidia`: a session of its PersonaPlex model. Runs in an environment of its own.

Usage: livekit_nvidia.py URL WAV SECONDS [INSTRUCTIONS]. Sends the WAV and then silence in real time; gives the agent
other INSTRUCTIONS after half of the time. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import wave
from typing import Any

import aiohttp
from livekit import rtc
from livekit.plugins.nvidia.experimental.realtime import RealtimeModel

STEP_S = 0.02


async def main(url: str, path: str, seconds: float, instructions: str = "") -> None:
    found: dict[str, Any] = {"errors": [], "generations": []}
    listening: list[asyncio.Task[None]] = []

    async def listen(generation: Any) -> None:
        burst = {"text": "", "seconds": 0.0, "ended": False}
        found.setdefault("connect_seconds", time.monotonic() - began)
        found["generations"].append(burst)
        async for message in generation.message_stream:

            async def texts(stream: Any = message.text_stream) -> None:
                async for text in stream:
                    burst["text"] += text

            async def sounds(stream: Any = message.audio_stream) -> None:
                async for frame in stream:
                    burst["seconds"] += frame.duration

            await asyncio.gather(texts(), sounds())
        burst["ended"] = True

    async with aiohttp.ClientSession() as http:
        began = time.monotonic()
        model = RealtimeModel(base_url=url, voice="NATF0", text_prompt="You are Ana.", seed=7, http_session=http)
        session: Any = model.session()
        session.on("generation_created", lambda event: listening.append(asyncio.create_task(listen(event))))
        session.on("error", lambda event: found["errors"].append([str(event.error), event.recoverable]))
        with wave.open(path) as sound:
            rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
        size = int(rate * STEP_S)
        began = due = time.monotonic()
        while time.monotonic() - began < seconds:
            if instructions and time.monotonic() - began > seconds / 2:
                await session.update_instructions(instructions)
                instructions = ""
            at = 2 * size * round((due - began) / STEP_S)
            piece = data[at : at + 2 * size].ljust(2 * size, b"\0")
            session.push_audio(rtc.AudioFrame(piece, rate, 1, size))
            due += STEP_S
            await asyncio.sleep(max(due - time.monotonic(), 0))
        found["seconds"] = time.monotonic() - began
        # Before the session is closed, which ends every generation.
        found["generations"] = json.loads(json.dumps(found["generations"]))
        await session.aclose()
        for task in listening:
            task.cancel()
    print(json.dumps(found))


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:]))
