"""PCM streams of any format and rate."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from gateway.audio.stream import PcmReader, to_bytes
from gateway.errors import AudioError

NOISE = np.random.default_rng(3).uniform(-0.9, 0.9, 24_000).astype(np.float32)


def test_floats_at_the_models_rate_pass_unchanged() -> None:
    assert np.array_equal(PcmReader("pcm_f32le", 24_000).read(NOISE.astype("<f4").tobytes()), NOISE)


def test_integers_are_scaled_to_one() -> None:
    data = np.array([-32768, 0, 16384, 32767], "<i2").tobytes()
    assert PcmReader("pcm_s16le", 24_000).read(data).tolist() == [-1.0, 0.0, 0.5, 32767 / 32768]


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("piece", [77, 4000])
def test_resampling_in_pieces_equals_resampling_at_once(rate: int, piece: int) -> None:
    reader = PcmReader("pcm_f32le", rate)
    parts = [reader.read(NOISE[at : at + piece].tobytes()) for at in range(0, len(NOISE), piece)]
    whole = np.concatenate([*parts, reader.finish()])
    expected = soxr.resample(NOISE, rate, 24_000, quality="HQ")
    assert len(whole) == len(expected)
    assert np.abs(whole - expected).max() < 1e-5


@pytest.mark.parametrize(("form", "size"), [("pcm_s16le", 1), ("pcm_s16le", 3), ("pcm_f32le", 6)])
def test_an_incomplete_sample_is_rejected(form: str, size: int) -> None:
    with pytest.raises(AudioError, match="whole"):
        PcmReader(form, 24_000).read(bytes(size))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 17.0, -1e30])
def test_invalid_sample_values_are_rejected(value: float) -> None:
    with pytest.raises(AudioError, match="NaN"):
        PcmReader("pcm_f32le", 24_000).read(np.array([0.0, value], "<f4").tobytes())


@pytest.mark.parametrize("rate", [7_999, 192_001])
def test_other_rates_are_rejected(rate: int) -> None:
    with pytest.raises(AudioError, match="samples per second"):
        PcmReader("pcm_s16le", rate)


def test_no_bytes_give_no_samples() -> None:
    assert PcmReader("pcm_f32le", 16_000).read(b"").size == 0
    assert PcmReader("pcm_f32le", 24_000).finish().size == 0


def test_to_bytes_is_inverse_to_reading() -> None:
    assert np.array_equal(PcmReader("pcm_f32le", 24_000).read(to_bytes(NOISE, "pcm_f32le")), NOISE)
    assert np.abs(PcmReader("pcm_s16le", 24_000).read(to_bytes(NOISE, "pcm_s16le")) - NOISE).max() <= 2 / 32768
