"""The agent's silence is exact zeros on the wire, in every format, and its words are whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.gateway.openai.conftest import DELTA, TEXT, Caller, Server

IDLE_LEVEL = 80 / 32768
"""Of the decoder's noise: below -50 dBFS, and far above the gates of LiveKit and Pipecat."""


@pytest.mark.parametrize(
    ("audio_format", "idle"),
    [
        ({"type": "audio/pcm", "rate": 24000}, 0),
        ({"type": "audio/pcm", "rate": 16000}, 0),
        ({"type": "audio/pcmu", "rate": 8000}, 0xFF),
        ({"type": "audio/pcma", "rate": 8000}, 0xD5),
    ],
)
async def test_an_agent_that_never_speaks_sends_zeros_only(
    server: Server, caller: Caller, audio_format: dict[str, Any], idle: int
) -> None:
    server.engine.mute, server.engine.floor = True, IDLE_LEVEL
    await caller.start(audio={"format": audio_format})
    await caller.append(bytes([idle]) * (audio_format["rate"] * 2))
    await caller.close()
    assert len(caller.audio) >= audio_format["rate"]
    assert set(caller.audio) == {idle}
    assert not caller.of(TEXT)


async def test_an_agent_that_stops_and_starts_sends_zeros_between_its_words(
    server: Server, caller: Caller, noise: Callable[..., Any]
) -> None:
    server.engine.mute, server.engine.floor = True, IDLE_LEVEL
    await caller.start()
    await caller.until(DELTA)
    for mute in (True, False, True, False):
        server.engine.mute = mute
        await caller.append(noise(10))
        for _ in range(10):
            await caller.until(DELTA)
    await caller.close()
    audible = [bool(frame.any()) for frame in caller.frames[1:]]
    # The squelch opens in the frame of the first word. It closes three frames after the last one, whose text may come
    # a frame after the audio of this engine.
    assert audible[:10] == [False] * 10
    assert audible[10:20] == [True] * 10
    assert audible[24:30] == [False] * 6
    assert audible[30:40] == [True] * 10
    spoken = np.abs(caller.frames[11:21]).max(axis=1)
    assert (spoken > 3000).all()
