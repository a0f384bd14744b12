"""Unit tests of the page's jitter buffer and recording, run in the browser."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.page.browser import Visit

QUANTUM = 128
FRAME = 1920
RATE = 24000

# Plays a script of arrivals against a clock of quanta; gives back what came out, and the buffer's figures.
PLAY = """async ({ arrivals, quanta }) => {
  const { JitterBuffer } = await import("./page/jitter.js");
  const buffer = new JitterBuffer(24000);
  const output = new Float32Array(quanta * 128), marks = [];
  let index = 0;
  for (let q = 0; q < quanta; q++) {
    for (let n = arrivals[q] ?? 0; n > 0; n--) {
      buffer.push(Float32Array.from({ length: 1920 }, (_, i) => 0.5 + 1e-5 * (index * 1920 + i)), index);
      index += 1;
    }
    const out = output.subarray(q * 128, (q + 1) * 128);
    for (const { mark, offset } of buffer.pull(out)) marks.push([mark, q * 128 + offset]);
  }
  const bytes = new Uint8Array(output.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  const { gaps, skipped, fill, target } = buffer;
  return { output: btoa(text), marks, gaps, skipped, fill, target };
}"""


def play(visit: Visit, arrivals: dict[int, int], quanta: int) -> dict[str, Any]:
    """`arrivals`: how many frames arrive just before which quantum."""
    result: dict[str, Any] = visit.page.evaluate(PLAY, {"arrivals": arrivals, "quanta": quanta})
    # Playwright's own representation of an array takes a second per 50,000 numbers.
    result["output"] = np.frombuffer(base64.b64decode(result["output"]), "<f4")
    return result


def test_punctual_frames_are_played_without_a_gap(visit: Visit) -> None:
    played = play(visit, {15 * k: 1 for k in range(40)}, 600)
    output = played["output"]
    first = int(np.argmax(output > 0.4))
    # It starts when the second frame is there, fades in for 5 ms, and from then on every sample follows the last.
    assert 15 * QUANTUM <= first <= 15 * QUANTUM + 120
    assert np.allclose(np.diff(output[15 * QUANTUM + 121 :]), 1e-5, atol=1e-6)
    assert (played["gaps"], played["skipped"]) == (0, 0)
    assert played["marks"] == [[k, (k + 1) * FRAME] for k in range(39)]


@pytest.mark.parametrize("late", [7, 14])
def test_one_late_frame_causes_no_gap(visit: Visit, late: int) -> None:
    arrivals = {15 * k: 1 for k in range(20)}
    del arrivals[150]
    arrivals[150 + late] = 1
    assert play(visit, arrivals, 300)["gaps"] == 0


def test_a_gap_is_counted_and_faded_and_increases_the_delay(visit: Visit) -> None:
    arrivals = {15 * k: 1 for k in range(10)} | {210: 5} | {15 * k: 1 for k in range(15, 30)}
    played = play(visit, arrivals, 450)
    output = played["output"]
    assert played["gaps"] == 1
    assert played["target"] > 0.12
    # No click: differences of adjacent samples are small.
    assert np.abs(np.diff(output)).max() < 0.05
    assert [mark for mark, _ in played["marks"]] == list(range(len(played["marks"])))


def test_a_burst_after_a_stall_is_skipped(visit: Visit) -> None:
    played = play(visit, {0: 2, 60: 25} | {15 * k: 1 for k in range(5, 20)}, 300)
    assert played["skipped"] > 0.5 * RATE
    assert played["fill"] < 0.4
    assert np.abs(np.diff(played["output"])).max() < 0.05


def test_unneeded_delay_is_removed(visit: Visit) -> None:
    played = play(visit, {0: 6} | {15 * k: 1 for k in range(1, 300)}, 4500)
    assert played["gaps"] == 0
    assert played["skipped"] > 0.2 * RATE
    assert played["fill"] < 0.2


RECORD = """async ({ blocks, rate }) => {
  const { Recording } = await import("./page/recording.js");
  const recording = new Recording(24000, 1000);
  for (const [side, at, level, length] of blocks)
    recording.put(side, at, new Float32Array(length).fill(level), side === 0 ? rate : 24000);
  const bytes = new Uint8Array(await recording.wav().arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return [btoa(text), recording.seconds];
}"""


def record(visit: Visit, blocks: list[tuple[int, int, float, int]], rate: int = RATE) -> tuple[Any, float]:
    """`blocks`: (side, at, level, length). The recording begins at 1000."""
    encoded, seconds = visit.page.evaluate(RECORD, {"blocks": blocks, "rate": rate})
    pcm, found = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32", always_2d=True)
    assert found == RATE
    return pcm, seconds


def test_blocks_are_placed_by_their_time(visit: Visit) -> None:
    pcm, seconds = record(visit, [(0, 900, 0.5, 200), (1, 1150, -0.25, 100), (0, 1300, 2.0, 50)])
    expected = np.zeros((350, 2))
    expected[:100, 0] = 0.5
    expected[150:250, 1] = -0.25
    expected[300:, 0] = 1.0
    assert np.allclose(pcm, expected, atol=1e-4)
    assert seconds == 350 / RATE


def test_a_long_recording_is_complete(visit: Visit) -> None:
    """Complete parts are stored as blobs. No samples are lost at their edges."""
    length = RATE * 7
    blocks = [(side, 1000 + k * length, 0.1 * (k + 1) * (1 - 2 * side), length) for k in range(6) for side in (0, 1)]
    pcm, _ = record(visit, blocks)
    levels = np.repeat(0.1 * np.arange(1, 7), length)
    assert np.allclose(pcm, np.stack([levels, -levels], axis=1), atol=1e-4)


def test_user_audio_at_another_rate_is_resampled(visit: Visit) -> None:
    pcm, _ = record(visit, [(0, 1000 + k * FRAME, 0.3, 3840) for k in range(5)], rate=48_000)
    assert pcm.shape == (5 * FRAME, 2)
    assert np.allclose(pcm[:, 0], 0.3, atol=1e-4)


def test_an_empty_recording_has_no_samples(visit: Visit) -> None:
    pcm, seconds = record(visit, [])
    assert (len(pcm), seconds) == (0, 0)
