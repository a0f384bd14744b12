"""G.711 beside libsndfile's implementation."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from gateway.audio import g711

SUBTYPES: dict[g711.Law, str] = {"ulaw": "ULAW", "alaw": "ALAW"}
# G.711 quantizes 14 and 13 of the 16 bits, so near the middle of two steps either is right.
UNUSED = 8
BYTES = bytes(range(256))


@pytest.mark.parametrize("law", SUBTYPES)
def test_every_byte_decodes_to_its_sample(law: g711.Law) -> None:
    expected, _ = soundfile.read(
        io.BytesIO(BYTES), dtype="int16", samplerate=8000, channels=1, format="RAW", subtype=SUBTYPES[law]
    )
    assert np.array_equal(np.frombuffer(g711.decode(BYTES, law), "<i2"), expected)


@pytest.mark.parametrize("law", SUBTYPES)
def test_every_sample_is_encoded_as_a_nearest_one(law: g711.Law) -> None:
    samples = np.arange(-(2**15), 2**15).astype("<i2")
    decoded = np.frombuffer(g711.decode(g711.encode(samples.tobytes(), law), law), "<i2").astype(int)
    possible = np.unique(np.frombuffer(g711.decode(BYTES, law), "<i2").astype(int))
    nearest = np.abs(samples.astype(int)[:, None] - possible).min(axis=1)
    assert (np.abs(decoded - samples) <= nearest + UNUSED).all()


def test_silence_is_the_idle_byte_of_each_law() -> None:
    assert g711.encode(bytes(4), "ulaw") == b"\xff\xff"
    assert g711.encode(bytes(4), "alaw") == b"\xd5\xd5"
