"""Ogg pages, judged by FFmpeg's demuxer and by files libsndfile writes."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audio.ogg import OggReader, OggWriter
from gateway.errors import AudioError
from tests.effort import effort

MAX = 61_440


def packets(stream: bytes, piece: int = 1 << 20, reader: OggReader | None = None) -> list[bytes]:
    reader = reader or OggReader(MAX)
    pieces = [stream[at : at + piece] for at in range(0, len(stream), piece)]
    return [packet.data for part in pieces for packet in reader.read(part)]


@pytest.fixture(scope="module")
def file() -> bytes:
    """Three seconds of noise: packets of libsndfile, many on a page."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 72_000)
    soundfile.write(buffer, noise, 24_000, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def demuxed(stream: bytes) -> list[bytes]:
    with av.open(io.BytesIO(stream), format="ogg") as container:
        return [bytes(packet) for packet in container.demux() if packet.size]


def test_packets_of_a_file_equal_those_of_ffmpeg(file: bytes) -> None:
    head, tags, *audio = packets(file)
    assert head.startswith(b"OpusHead")
    assert tags.startswith(b"OpusTags")
    assert audio == demuxed(file)


@pytest.mark.parametrize("piece", [1, 7, 27, 28, 300, 5000])
def test_pieces_of_any_size_give_the_same_packets(file: bytes, piece: int) -> None:
    assert packets(file, piece) == packets(file)


def test_the_end_of_a_stream_is_detected(file: bytes) -> None:
    reader = OggReader(MAX)
    packets(file[:-1], reader=reader)
    assert not reader.ended
    packets(file[-1:], reader=reader)
    assert reader.ended


def test_a_packet_is_returned_as_soon_as_its_page_is_complete() -> None:
    writer, reader = OggWriter(1), OggReader(MAX)
    for number in range(5):
        page = writer.page(bytes([number]) * 300, number)
        assert list(reader.read(page[:-1])) == []
        assert [packet.data for packet in reader.read(page[-1:])] == [bytes([number]) * 300]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=8), st.integers(1, 3000))
@settings(max_examples=effort(50, 200), deadline=None)
def test_written_pages_are_read(written: list[bytes], piece: int) -> None:
    writer = OggWriter(7)
    stream = b"".join(writer.page(packet, number) for number, packet in enumerate(written))
    assert packets(stream, piece) == written


@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 510, 65_024])
def test_lengths_at_the_edges_of_segments(size: int) -> None:
    assert packets(OggWriter(7).page(b"x" * size, 0), reader=OggReader(70_000)) == [b"x" * size]


def test_a_packet_may_continue_on_the_next_page() -> None:
    """A page that ends with a full segment, and one that continues the packet."""
    long = bytes(range(256)) * 3
    whole = OggWriter(9).page(long, 0)
    first = repaged(whole, flags=2, lacing=[255, 255], body=long[:510])
    rest = repaged(whole, flags=1, lacing=[255, 3], body=long[510:])
    assert packets(first + rest) == [long]


def test_pages_of_other_streams_are_skipped() -> None:
    ours, other = OggWriter(1), OggWriter(2)
    other.page(b"", 0)
    stream = ours.page(b"a", 0) + other.page(b"not ours", 0) + ours.page(b"b", 0)
    assert packets(stream) == [b"a", b"b"]


@pytest.mark.parametrize("at", [4, 5, 6, 14, 20, 22, 26, 27, 28, 40])
def test_a_flipped_bit_is_detected(at: int) -> None:
    page = bytearray(OggWriter(7).page(b"x" * 40, 0))
    page[at] ^= 1
    reader = OggReader(MAX)
    # A length that has grown makes the page wait for more.
    with pytest.raises(AudioError):
        packets(bytes(page) + bytes(600), reader=reader)


@pytest.mark.parametrize("stream", [b"RIFF", b"Og", b"O", b"\0"])
def test_other_data_is_rejected_at_the_first_byte_that_differs(stream: bytes) -> None:
    if b"OggS".startswith(stream):
        assert packets(stream) == []
        stream += b"x"
    with pytest.raises(AudioError, match="expected an Ogg page"):
        packets(stream)


def test_a_stream_must_begin_with_its_first_page() -> None:
    writer = OggWriter(7)
    writer.page(b"head", 0)
    with pytest.raises(AudioError, match="beginning"):
        packets(writer.page(b"x", 0))


def test_a_continued_packet_needs_a_beginning() -> None:
    whole = OggWriter(9).page(b"head", 0)
    with pytest.raises(AudioError, match="never began"):
        packets(whole + repaged(whole, flags=1, lacing=[3], body=b"abc"))


def test_a_packet_without_end_is_rejected() -> None:
    whole = OggWriter(9).page(b"head", 0)
    endless = repaged(whole, flags=0, lacing=[255] * 255, body=bytes(255 * 255))
    with pytest.raises(AudioError, match="at most"):
        packets(whole + endless)


def repaged(page: bytes, flags: int, lacing: list[int], body: bytes) -> bytes:
    """A page with other contents, its checksum bit by bit as in the RFC."""
    made = bytearray(page[:5] + bytes([flags]) + page[6:22] + bytes(4) + bytes([len(lacing), *lacing]) + body)
    register = 0
    for byte in made:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (0x04C11DB7 if register & 0x80000000 else 0)
            register &= 0xFFFFFFFF
    made[22:26] = register.to_bytes(4, "little")
    return bytes(made)
