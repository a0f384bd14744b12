"""A LiveKit `AgentSession` without a room, with `GPTLiveModel` or `RealtimeModel`. Runs in an environment of its own.

Usage: livekit_session.py live|realtime|FILE URL WAV SECONDS [reply|say TEXT]. Sends the WAV and then silence in real
time. Prints JSON. FILE: a program with a function `make_session` and an agent `ana`, in place of `GPTLiveModel` at the
URL. At the start a reply may be requested, with the TEXT as instructions, or the TEXT sent as what the agent is to say.
"""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
import time
import wave
from typing import Any

from livekit import rtc
from livekit.agents import Agent, AgentSession
from livekit.agents.voice import io
from livekit.plugins.openai.realtime import GPTLiveModel, RealtimeModel

STEP_S = 0.02
MODELS = {"live": GPTLiveModel, "realtime": RealtimeModel}


class Microphone(io.AudioInput):
    """Frames of 20 ms, paced in real time."""

    def __init__(self, path: str) -> None:
        super().__init__(label="wav")
        with wave.open(path) as sound:
            self._rate = sound.getframerate()
            self._data = sound.readframes(sound.getnframes())
        self._size = int(self._rate * STEP_S)
        self._at = 0
        self._due = time.monotonic()

    async def __anext__(self) -> rtc.AudioFrame:
        self._due += STEP_S
        await asyncio.sleep(max(self._due - time.monotonic(), 0))
        piece = self._data[self._at : self._at + 2 * self._size]
        self._at += 2 * self._size
        return rtc.AudioFrame(piece.ljust(2 * self._size, b"\0"), self._rate, 1, self._size)


class Speaker(io.AudioOutput):
    """Counts what it plays."""

    def __init__(self) -> None:
        super().__init__(
            label="count", capabilities=io.AudioOutputCapabilities(pause=False), next_in_chain=None, sample_rate=24000
        )
        self.seconds = 0.0
        self.bursts = 0
        self._burst = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._burst:
            self.bursts += 1
            self.on_playback_started(created_at=time.time())
        self._burst += frame.duration
        self.seconds += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._burst:
            seconds, self._burst = self._burst, 0.0
            asyncio.get_running_loop().call_later(
                0.1, lambda: self.on_playback_finished(playback_position=seconds, interrupted=False)
            )

    def clear_buffer(self) -> None:
        if self._burst:
            seconds, self._burst = self._burst, 0.0
            self.on_playback_finished(playback_position=seconds, interrupted=True)


async def main(kind: str, url: str, path: str, seconds: float, ask: str = "", text: str = "") -> None:
    found: dict[str, Any] = {"states": [], "errors": [], "items": [], "closed": None}
    if kind in MODELS:
        session: Any = AgentSession(llm=MODELS[kind](base_url=url, api_key="K"))
        agent = Agent(instructions="You are Ana.")
    else:
        module = runpy.run_path(kind)
        session, agent = module["make_session"](), module["ana"]
    speaker = Speaker()
    session.input.audio, session.output.audio = Microphone(path), speaker
    closed = asyncio.Event()

    def on_close(event: Any) -> None:
        found["closed"] = event.reason.value
        closed.set()

    session.on("agent_state_changed", lambda event: found["states"].append(event.new_state))
    session.on("error", lambda event: found["errors"].append(str(event.error)))
    session.on(
        "conversation_item_added", lambda event: found["items"].append([event.item.role, event.item.text_content])
    )
    session.on("close", on_close)
    began = time.monotonic()
    await session.start(agent, record=False)
    reply = session.generate_reply(instructions=text) if ask == "reply" else None
    if ask == "say":
        agent.duplex_session.append_commentary(text)
    try:
        async with asyncio.timeout(seconds):
            await closed.wait()
    except TimeoutError:
        pass
    found |= {"seconds": time.monotonic() - began, "replied": reply is not None and reply.done()}
    began = time.monotonic()
    await session.aclose()
    found |= {"close_seconds": time.monotonic() - began, "audio_seconds": speaker.seconds, "bursts": speaker.bursts}
    print(json.dumps(found))


asyncio.run(main(*sys.argv[1:4], float(sys.argv[4]), *sys.argv[5:]))
