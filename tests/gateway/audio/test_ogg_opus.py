"""Opus in Ogg: libsndfile and FFmpeg read the written streams, and streams of libsndfile are read."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from gateway.audio.ogg import OggReader, OggWriter
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.errors import AudioError

FRAME = 1920
# Correlation of a tone of 300 Hz: 0.8 for a shift of a third of a millisecond, 0 for 0.8 ms.
ALIKE = 0.9


def tone(seconds: float = 1.6, hertz: float = 300.0) -> NDArray[np.float32]:
    time = np.arange(round(24_000 * seconds)) / 24_000
    return (0.4 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def written(pcm: NDArray[np.float32]) -> bytes:
    writer = OggOpusWriter()
    frames = pcm.reshape(-1, FRAME)
    return writer.head() + b"".join(writer.write(frame, last=frame is frames[-1]) for frame in frames)


def read(stream: bytes, piece: int = 1 << 20) -> NDArray[np.float32]:
    reader = OggOpusReader()
    pieces = [stream[at : at + piece] for at in range(0, len(stream), piece)]
    return np.concatenate([np.empty(0, np.float32), *(pcm for part in pieces for pcm in reader.read(part))])


def likeness(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the correlation over the common length."""
    size = min(len(one), len(other))
    return float(np.corrcoef(one[:size], other[:size])[0, 1])


def test_libsndfile_reads_written_streams_without_delay() -> None:
    pcm = tone()
    decoded, rate = soundfile.read(io.BytesIO(written(pcm)), dtype="float32")
    assert rate == 24_000
    assert len(pcm) - FRAME < len(decoded) <= len(pcm)
    assert likeness(pcm, decoded) > ALIKE


def test_ffmpeg_reads_a_packet_of_80_ms_per_page() -> None:
    pcm = tone()
    with av.open(io.BytesIO(written(pcm)), format="ogg") as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "opus"
        assert stream.codec_context.channels == 1
        found = [packet for packet in container.demux() if packet.size]
    assert len(found) == len(pcm) // FRAME
    seconds = [float(packet.duration * packet.time_base) for packet in found if packet.duration]
    assert seconds == pytest.approx([0.08] * len(seconds))
    assert len(seconds) >= len(found) - 1


def test_positions_count_samples_at_48_khz() -> None:
    writer = OggOpusWriter()
    writer.head()
    pages = [writer.write(frame) for frame in tone().reshape(-1, FRAME)[:3]]
    assert [struct.unpack_from("<q", page, 6)[0] for page in pages] == [3840, 7680, 11520]


def test_the_head_describes_the_stream() -> None:
    head, tags = (packet.data for packet in OggReader(1000).read(OggOpusWriter().head()))
    assert struct.unpack("<8sBBHIhB", head) == (b"OpusHead", 1, 1, 312, 24_000, 0, 0)
    (size,) = struct.unpack_from("<I", tags, 8)
    assert tags == b"OpusTags" + struct.pack("<I", size) + tags[12 : 12 + size] + bytes(4)


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_streams_of_libsndfile_are_read(piece: int, rate: int, channels: int) -> None:
    time = np.arange(2 * rate) / rate
    pcm = 0.4 * np.sin(2 * np.pi * 300 * time)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([pcm] * channels, axis=1), rate, format="OGG", subtype="OPUS")
    decoded = read(buffer.getvalue(), piece)
    # Not trimmed at the end: the end of a running stream is unknown.
    assert 48_000 <= len(decoded) < 48_000 + 2 * FRAME
    assert likeness(tone(2.0), decoded) > ALIKE


def test_a_second_stream_may_follow() -> None:
    pcm = tone(0.8)
    stream = written(pcm)
    assert len(read(stream + stream)) == 2 * len(read(stream))


def test_the_gain_of_the_head_is_applied() -> None:
    stream = written(tone(0.8))
    louder = OggWriter(42).page(struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 312, 24_000, -6 * 256, 0), 0)
    halved = read(louder + stream[len(louder) :])
    assert halved == pytest.approx(read(stream) * 10 ** (-6 / 20), abs=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"OpusHead",
        b"OpusTags" + bytes(11),
        struct.pack("<8sBBHIhB", b"OpusHead", 16, 1, 0, 24_000, 0, 0),
        struct.pack("<8sBBHIhB", b"OpusHead", 1, 0, 0, 24_000, 0, 0),
        struct.pack("<8sBBHIhB", b"OpusHead", 1, 3, 0, 24_000, 0, 1),
    ],
)
def test_other_heads_are_rejected(head: bytes) -> None:
    with pytest.raises(AudioError, match="expected"):
        read(OggWriter(1).page(head, 0))


def test_tags_must_follow_the_head() -> None:
    writer = OggWriter(1)
    head = writer.page(struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 0, 24_000, 0, 0), 0)
    with pytest.raises(AudioError, match="OpusTags"):
        read(head + writer.page(b"\xfc", 0))


def test_highly_compressed_audio_is_decoded_on_demand() -> None:
    writer = OggWriter(42)
    head = OggOpusWriter().head()
    writer.page(b"", 0)
    # A packet of one byte is 60 ms of silence.
    page = writer.page(b"\x18", 0)
    pieces = OggOpusReader().read(head + page * 20_000)
    assert len(next(pieces)) > 0
    assert len(next(pieces)) == 1440
