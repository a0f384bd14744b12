"""Read and write Ogg pages (RFC 3533) as a stream, without holding complete packets back.

Written by hand because no library does this push-based: PyAV demuxes by pulling from a file object, which takes a
thread per client. sphn decodes a whole message in one call, however long it takes, and does not report the end of a
stream. `make bench-libraries` compares the two.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.errors import AudioError

_CAPTURE = b"OggS"
# Capture pattern, version, flags, granule position, serial number, sequence number, checksum, number of segments.
_HEADER = struct.Struct("<4sBBqIIIB")
_CHECKSUM = slice(22, 26)
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_SEGMENT = 255
_MAX_SEGMENTS = 255

# Ogg's checksum is the usual CRC-32 with the bits of every byte, and of the result, reversed.
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. `first`: it begins a logical stream."""

    data: bytes
    first: bool


class OggReader:
    """Parse one physical stream piece by piece. Of several logical streams, the one that began last is read."""

    def __init__(self, max_packet_bytes: int) -> None:
        self._max_packet_bytes = max_packet_bytes
        self._buffer = bytearray()
        self._serial: int | None = None
        self._partial = bytearray()
        self.ended = False
        """Whether the logical stream has ended."""

    def read(self, data: bytes) -> Iterator[Packet]:
        """Yield the packets that `data`, any piece of the stream, completes. Consume them before the next piece.

        Raises AudioError for data that is not Ogg, a wrong checksum, or a packet that is too long.
        """
        self._buffer += data
        while (page := self._next_page()) is not None:
            yield from self._packets(page)

    def _next_page(self) -> bytes | None:
        buffer = self._buffer
        if not buffer.startswith(_CAPTURE[: len(buffer)]):
            raise AudioError("expected an Ogg page, got something else")
        if len(buffer) < _HEADER.size:
            return None
        segments = buffer[_HEADER.size - 1]
        body = _HEADER.size + segments
        if len(buffer) < body or len(buffer) < (size := body + sum(buffer[_HEADER.size : body])):
            return None
        page = bytes(buffer[:size])
        del buffer[:size]
        if page[4] != 0:
            raise AudioError(f"expected version 0 of Ogg, got {page[4]}")
        if _checksum(page) != page[_CHECKSUM]:
            raise AudioError("an Ogg page is damaged: its checksum is wrong")
        return page

    def _packets(self, page: bytes) -> Iterator[Packet]:
        _, _, flags, _, serial, _, _, segments = _HEADER.unpack_from(page)
        if flags & _FIRST:
            self._serial = serial
            self._partial.clear()
        if serial != self._serial:
            if self._serial is None:
                raise AudioError("expected an Ogg stream from its beginning, got a page of its middle")
            return
        first = bool(flags & _FIRST)
        self.ended = bool(flags & _LAST)
        if not flags & _CONTINUED:
            self._partial.clear()
        elif not self._partial:
            raise AudioError("an Ogg page goes on with a packet that never began")
        lengths = page[_HEADER.size : _HEADER.size + segments]
        at = _HEADER.size + segments
        for length in lengths:
            self._partial += page[at : at + length]
            at += length
            if len(self._partial) > self._max_packet_bytes:
                raise AudioError(f"expected packets of at most {self._max_packet_bytes} bytes")
            if length < _SEGMENT:
                yield Packet(bytes(self._partial), first)
                self._partial.clear()


class OggWriter:
    """Write one logical stream, with a page per packet, so that each can be sent at once."""

    def __init__(self, serial: int) -> None:
        self._serial = serial
        self._pages = 0

    def page(self, packet: bytes, granule: int, *, last: bool = False) -> bytes:
        """Make a page with one packet of less than 65,025 bytes. `granule`: the position of the stream at its end."""
        full, rest = divmod(len(packet), _SEGMENT)
        if full + 1 > _MAX_SEGMENTS:
            raise ValueError(f"a packet of {len(packet)} bytes does not fit on an Ogg page")
        flags = (0 if self._pages else _FIRST) | (_LAST if last else 0)
        header = _HEADER.pack(_CAPTURE, 0, flags, granule, self._serial, self._pages, 0, full + 1)
        self._pages += 1
        page = bytearray(header + b"\xff" * full + bytes([rest]) + packet)
        page[_CHECKSUM] = _checksum(page)
        return bytes(page)


def _checksum(page: bytes | bytearray) -> bytes:
    """Compute the four bytes of the checksum field; its present content is ignored."""
    blank = page[: _CHECKSUM.start] + b"\0\0\0\0" + page[_CHECKSUM.stop :]
    mirrored = zlib.crc32(blank.translate(_MIRRORED), _ALL_ONES) ^ _ALL_ONES
    return mirrored.to_bytes(4, "little").translate(_MIRRORED)[::-1]
