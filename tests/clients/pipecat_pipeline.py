"""A Pipecat pipeline with `OpenAILiveLLMService` or `OpenAIRealtimeLLMService`, without a transport.

Runs in an environment of its own. Usage: pipecat_pipeline.py KIND URL WAV SECONDS [START_AFTER [DEVELOPER_MESSAGE]].
Sends the WAV and then silence in real time. Prints one line of JSON.

KIND: `live`; `realtime`, where the server detects turns; `realtime-manual`, where it does not, and the pipeline
interrupts the agent once a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import wave
from typing import Any

from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMRunFrame,
    OutputAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.live.llm import OpenAILiveLLMService
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

STEP_S = 0.02
found: dict[str, Any] = {"bot": [], "errors": [], "text": "", "audio_seconds": 0.0, "started": False}


class Errors(FrameProcessor):
    """Records the errors that the service sends upstream."""

    async def process_frame(self, frame: Any, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, ErrorFrame):
            found["errors"].append({"error": str(frame.error), "fatal": frame.fatal})
        await self.push_frame(frame, direction)


class Watch(FrameProcessor):
    """Records what the service sends to the speaker, and what that sends back."""

    async def process_frame(self, frame: Any, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSTextFrame):
            found["text"] += frame.text
        elif isinstance(frame, OutputAudioRawFrame):
            found["audio_seconds"] += len(frame.audio) / 2 / frame.sample_rate
        elif isinstance(frame, BotStartedSpeakingFrame) and direction is FrameDirection.UPSTREAM:
            found["bot"].append("started")
        elif isinstance(frame, BotStoppedSpeakingFrame) and direction is FrameDirection.UPSTREAM:
            found["bot"].append("stopped")
        await self.push_frame(frame, direction)


class Speaker(BaseOutputTransport):
    """Plays in real time, without the 2 s of silence that it would play after the end."""

    def __init__(self) -> None:
        params = TransportParams(audio_out_enabled=True, audio_out_sample_rate=24000, audio_out_end_silence_secs=0)
        super().__init__(params)
        self._due = 0.0

    async def start(self, frame: Any) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._due = max(self._due, time.monotonic()) + len(frame.audio) / 2 / frame.sample_rate
        await asyncio.sleep(max(self._due - time.monotonic(), 0))
        return True


def realtime_service(url: str, *, detects: bool) -> Any:
    detection = events.TurnDetection() if detects else False
    audio = events.AudioConfiguration(input=events.AudioInput(turn_detection=detection))
    settings = OpenAIRealtimeLLMService.Settings(session_properties=events.SessionProperties(audio=audio))
    return OpenAIRealtimeLLMService(api_key="K", base_url=url, settings=settings)


async def main(kind: str, url: str, path: str, seconds: float, start_after: float = 0.0, developer: str = "") -> None:
    messages: list[Any] = [{"role": "system", "content": "You are Ana."}]
    if developer:
        messages.append({"role": "developer", "content": developer})
    context = LLMContext(messages)
    pair = LLMContextAggregatorPair(context)
    started = asyncio.Event()
    service: Any
    if kind == "live":
        service = OpenAILiveLLMService(api_key="K", base_url=url)

        @service.event_handler("on_session_started")
        async def on_session_started(*_: Any) -> None:
            found["started"] = True
            started.set()

    else:
        # It has no event for the start.
        service = realtime_service(url, detects=kind == "realtime")
        started.set()

    pipeline = Pipeline([Errors(), pair.user(), service, Watch(), Speaker(), pair.assistant()])
    worker = PipelineWorker(pipeline, params=PipelineParams(audio_out_sample_rate=24000))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)

    async def talk() -> None:
        await asyncio.sleep(start_after)
        await worker.queue_frames([LLMRunFrame()])
        try:
            await asyncio.wait_for(started.wait(), 5)
        except TimeoutError:
            found["errors"].append({"error": "not started", "fatal": True})
        with wave.open(path) as sound:
            rate, data = sound.getframerate(), sound.readframes(sound.getnframes())
        size = int(rate * STEP_S)
        began = due = time.monotonic()
        while time.monotonic() - began < seconds:
            at = 2 * size * round((due - began) / STEP_S)
            piece = data[at : at + 2 * size].ljust(2 * size, b"\0")
            await worker.queue_frames([InputAudioRawFrame(audio=piece, sample_rate=rate, num_channels=1)])
            if kind == "realtime-manual" and round((due - began) / STEP_S) % round(1 / STEP_S) == 0:
                await worker.queue_frames([InterruptionFrame()])
            due += STEP_S
            await asyncio.sleep(max(due - time.monotonic(), 0))
        found["seconds"] = time.monotonic() - began
        await worker.queue_frames([EndFrame()])
        found["ended_at"] = time.monotonic()

    talking = asyncio.create_task(talk())
    await runner.run()
    await talking
    found["close_seconds"] = time.monotonic() - found.pop("ended_at")
    found["assistant"] = [
        message["content"] for message in context.get_messages() if message.get("role") == "assistant"
    ]
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:4], *map(float, sys.argv[4:6]), *sys.argv[6:7]))
