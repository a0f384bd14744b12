"""A Pipecat bot, on a transport without a network. Runs in an environment of its own.

Usage: pipecat_bot.py FILE WAV SECONDS. FILE: a program with a function `make_worker`. A client connects, sends the WAV
and then silence in real time, and disconnects. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
import time
import wave
from typing import Any

from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner

STEP_S = 0.02
PARAMS = TransportParams(audio_in_enabled=True, audio_out_enabled=True, audio_out_sample_rate=24000)


class Microphone(BaseInputTransport):
    def __init__(self) -> None:
        super().__init__(PARAMS)
        self.started = asyncio.Event()

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        self.started.set()

    async def speak(self, path: str, seconds: float) -> None:
        """Send audio in steps of 20 ms."""
        with wave.open(path) as sound:
            rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
        size = 2 * int(rate * STEP_S)
        began = time.monotonic()
        for step in range(round(seconds / STEP_S)):
            piece = data[step * size : (step + 1) * size].ljust(size, b"\0")
            await self.push_audio_frame(InputAudioRawFrame(audio=piece, sample_rate=rate, num_channels=1))
            await asyncio.sleep(max(began + (step + 1) * STEP_S - time.monotonic(), 0))


class Speaker(BaseOutputTransport):
    """Plays in real time. loud: seconds that were not silent."""

    def __init__(self) -> None:
        super().__init__(PARAMS)
        self.seconds = self.loud = 0.0
        self._due = 0.0

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        seconds = len(frame.audio) / 2 / frame.sample_rate
        self.seconds += seconds
        self.loud += seconds if any(frame.audio) else 0
        self._due = max(self._due, time.monotonic()) + seconds
        await asyncio.sleep(max(self._due - time.monotonic(), 0))
        return True


class Transport(BaseTransport):
    def __init__(self) -> None:
        super().__init__()
        self.microphone, self.speaker = Microphone(), Speaker()
        self._register_event_handler("on_client_connected")
        self._register_event_handler("on_client_disconnected")

    def input(self) -> Microphone:
        return self.microphone

    def output(self) -> Speaker:
        return self.speaker

    async def hold_a_call(self, path: str, seconds: float) -> None:
        await self.microphone.started.wait()
        await self._call_event_handler("on_client_connected", None)
        await self.microphone.speak(path, seconds)
        await self._call_event_handler("on_client_disconnected", None)


async def main(example: str, path: str, seconds: float) -> None:
    transport = Transport()
    worker = runpy.run_path(example)["make_worker"](transport)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await transport.hold_a_call(path, seconds)
    await running
    print(json.dumps({"seconds": transport.speaker.seconds, "loud": transport.speaker.loud}))


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
