"""Opus in Ogg (RFC 7845) to and from 24 kHz mono float32, as a stream.

Positions in incoming streams are ignored: the clients of `/api/chat` count them at 24 kHz instead of the RFC's 48 kHz.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from gateway.audio.ogg import OggReader, OggWriter, Packet
from gateway.audio.opus import MAX_PACKET_BYTES, SAMPLE_RATE, OpusDecoder, OpusEncoder
from gateway.audio.samples import Floats
from gateway.errors import AudioError

# Positions and the pre-skip count samples at 48 kHz, whatever the rate (RFC 7845 sections 4 and 5.1).
_CLOCK = 48_000
_TICKS = _CLOCK // SAMPLE_RATE

# Magic, version, channels, pre-skip, input rate, output gain, mapping family.
_HEAD = struct.Struct("<8sBBHIhB")
_HEAD_MAGIC, _TAGS_MAGIC = b"OpusHead", b"OpusTags"
_VENDOR = b"personaplex-triton"
_SERIAL = 42
# Mapping family 0 is mono or stereo in one Opus stream; the others are several streams.
_MAX_CHANNELS = 2


class OggOpusReader:
    """Decode one client's stream, or several in succession."""

    def __init__(self) -> None:
        self._ogg = OggReader(MAX_PACKET_BYTES)
        self._decoder = OpusDecoder()
        self._header = 0
        self._skip = 0
        self._gain = 1.0

    @property
    def ended(self) -> bool:
        """Whether the stream has ended."""
        return self._ogg.ended

    def read(self, data: bytes) -> Iterator[Floats]:
        """Decode any piece of the stream lazily; yield [T] float32 per packet.

        A few bytes of Opus can be minutes of silence. Raises AudioError for data that is not Opus in Ogg.
        """
        for packet in self._ogg.read(data):
            pcm = self._packet(packet)
            if pcm is not None:
                yield pcm

    def _packet(self, packet: Packet) -> Floats | None:
        if packet.first:
            self._begin(packet.data)
            return None
        if self._header == 1:
            if not packet.data.startswith(_TAGS_MAGIC):
                raise AudioError("expected an OpusTags packet after OpusHead")
            self._header = 2
            return None
        pcm = self._decoder.decode(packet.data)
        if self._skip:
            skipped = min(self._skip, len(pcm))
            self._skip -= skipped
            pcm = pcm[skipped:]
        return pcm if self._gain == 1.0 else np.clip(pcm * np.float32(self._gain), -1, 1)

    def _begin(self, head: bytes) -> None:
        if self._header == 1 or len(head) < _HEAD.size:
            raise AudioError("expected an OpusHead packet at the beginning of the Ogg stream")
        magic, version, channels, skip, _, gain, family = _HEAD.unpack_from(head)
        if magic != _HEAD_MAGIC or version >> 4 != 0:
            raise AudioError("expected an OpusHead packet at the beginning of the Ogg stream")
        if family != 0 or not 1 <= channels <= _MAX_CHANNELS:
            raise AudioError(f"expected mono or stereo Opus, got {channels} channels of mapping family {family}")
        self._header = 1
        self._skip = skip // _TICKS
        self._gain = 10.0 ** (gain / (20 * 256))
        self._decoder = OpusDecoder()


class OggOpusWriter:
    """Encode the agent's stream, with a page per frame."""

    def __init__(self) -> None:
        self._encoder = OpusEncoder()
        self._ogg = OggWriter(_SERIAL)
        self._position = 0

    def head(self) -> bytes:
        """Make the two pages at the beginning of a stream."""
        skip = self._encoder.lookahead * _TICKS
        head = _HEAD.pack(_HEAD_MAGIC, 1, 1, skip, SAMPLE_RATE, 0, 0)
        tags = _TAGS_MAGIC + struct.pack("<I", len(_VENDOR)) + _VENDOR + struct.pack("<I", 0)
        return self._ogg.page(head, 0) + self._ogg.page(tags, 0)

    def write(self, frame: Floats, *, last: bool = False) -> bytes:
        """Encode a frame [1920] float32 at 24 kHz, or another valid Opus frame length, as a page."""
        self._position += len(frame) * _TICKS
        return self._ogg.page(self._encoder.encode(frame), self._position, last=last)
