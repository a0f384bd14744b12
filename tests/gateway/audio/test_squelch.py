"""The squelch, judged by the loudness gates of two clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from gateway.audio.squelch import Squelch

RATE = 24_000
FRAME = 1920
LSB = 1 / 32768
RANDOM = np.random.default_rng(5)
QUESTION = Path(__file__).parents[2] / "data" / "question.wav"

Frames = list[NDArray[np.float32]]


def noise(rms_lsb: float, frames: int = 1) -> Frames:
    return list((RANDOM.standard_normal((frames, FRAME)) * rms_lsb * LSB).astype(np.float32))


def squelched(frames: Frames, texts: dict[int, str] | None = None) -> Frames:
    squelch = Squelch(RATE)
    return [squelch.apply(frame, (texts or {}).get(index, "")) for index, frame in enumerate(frames)]


def livekit_bursts(frames: Frames) -> list[tuple[int, int | None]]:
    """LiveKit's gate: opens above 0.0018 of full scale; closes after 0.8 s below 0.00108. First and last frames."""
    bursts: list[tuple[int, int | None]] = []
    quiet = 0
    for index, frame in enumerate(frames):
        level = float(np.sqrt(np.mean(np.square(frame, dtype=np.float64))))
        is_open = bool(bursts) and bursts[-1][1] is None
        quiet = quiet + 1 if level < 0.00108 else 0
        if not is_open and level > 0.0018:
            bursts.append((index, None))
        elif is_open and quiet >= 10:
            bursts[-1] = (bursts[-1][0], index)
    return bursts


def pipecat_bursts(frames: Frames) -> list[tuple[int, int | None]]:
    """Pipecat's bot: starts above a peak of 20, stops after 0.35 s of at most that."""
    bursts: list[tuple[int, int | None]] = []
    quiet = 0
    for index, frame in enumerate(frames):
        loud = float(np.abs(frame).max()) > 20 * LSB
        is_open = bool(bursts) and bursts[-1][1] is None
        quiet = 0 if loud else quiet + 1
        if not is_open and loud:
            bursts.append((index, None))
        elif is_open and quiet >= 5:
            bursts[-1] = (bursts[-1][0], index)
    return bursts


@pytest.mark.parametrize("rms", [0, 8, 20, 40, 80])
def test_idle_noise_is_zeros_from_the_first_frame(rms: float) -> None:
    assert not any(frame.any() for frame in squelched(noise(rms, 2000)))


@pytest.mark.parametrize("rms", [8, 20, 40, 80])
@pytest.mark.parametrize("gate", [livekit_bursts, pipecat_bursts])
def test_clients_see_one_burst_per_utterance(rms: float, gate: object) -> None:
    utterance = noise(3000, 15)
    frames = [*noise(rms, 20), *utterance, *noise(rms, 40), *utterance, *noise(rms, 40)]
    assert callable(gate)
    first, second = gate(squelched(frames))
    assert (first[0], second[0]) == (20, 75)
    assert first[1] is not None
    assert second[1] is not None
    # Without the squelch the gates of both stay open, or open at once.
    if rms >= 40:
        assert gate(frames)[-1][1] is None


def test_a_frame_with_text_or_level_passes_at_once() -> None:
    quiet, loud = noise(20)[0], noise(300)[0]
    frames = [quiet, quiet, loud, *[quiet] * 8, quiet, quiet]
    result = squelched(frames, {11: " yes"})
    assert [bool(frame.any()) for frame in result] == [False] * 2 + [True] * 4 + [False] * 5 + [True] * 2
    assert all(np.array_equal(after, before) for before, after in zip(frames, result, strict=True) if after.any())


@pytest.mark.parametrize("at", range(0, FRAME, 113))
def test_a_word_that_begins_anywhere_in_a_frame_is_not_cut(at: int) -> None:
    """A vowel at a speaking level with an attack of 5 ms, after silence."""
    time = np.arange(3 * FRAME) / RATE
    word = 0.1 * np.sin(2 * np.pi * 200 * time) * np.minimum(time / 0.005, 1)
    track = np.zeros(8 * FRAME, np.float32)
    track[2 * FRAME + at :][: len(word)] = word
    result = np.concatenate(squelched(list(track.reshape(-1, FRAME))))
    lost = track - result
    # What is lost is less than 2.5 ms of the attack.
    assert np.count_nonzero(lost) <= RATE * 0.0025
    assert np.abs(lost).max() < 0.1 * 0.5


def test_speech_keeps_all_that_can_be_heard() -> None:
    speech, rate = soundfile.read(QUESTION, dtype="float32")
    speech = soxr.resample(speech, rate, RATE)
    frames = list(speech[: len(speech) // FRAME * FRAME].reshape(-1, FRAME))
    result = squelched([*noise(20, 10), *frames, *noise(20, 20)])
    lost = np.concatenate(frames) - np.concatenate(result[10:-20])
    blocks = lost.reshape(-1, 240)
    assert np.sqrt(np.square(blocks).mean(axis=1)).max() < 10 ** (-44 / 20)
    assert np.square(lost).sum() < 1e-4 * np.square(speech).sum()
    assert not np.concatenate(result[-17:]).any()
