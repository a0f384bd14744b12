"""Messages that occupy the event loop do not delay other live sessions."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.audio.ogg_opus import OggOpusWriter
from tests.gateway.neighbour import FRAME_GAP_MS, LOOP_LAG_MS, MeasuredServer, best_of_three, serve_measured
from tests.gateway.websocket.conftest import start

LARGEST = 2**20 - 1
LARGEST_OGG = 65_535


def headers_only(size: int) -> bytes:
    """Alternating OpusHead and OpusTags pages: a decoder for each pair, and never any audio."""
    pair = OggOpusWriter().head()
    return (pair * (size // len(pair) + 1))[:size]


def page_of(packets: int, packet: bytes, serial: int = 42) -> bytes:
    """An Ogg page (RFC 3533) of many equal packets, each shorter than 255 bytes."""
    segments = bytes([len(packet)]) * packets
    page = b"OggS\0\0" + struct.pack("<qIIIB", 0, serial, 1, 0, packets) + segments + packet * packets
    # Ogg's CRC-32 has the bits of each byte, and of the result, reversed.
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    checksum = zlib.crc32(page.translate(reversed_bits), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + checksum.to_bytes(4, "little").translate(reversed_bits)[::-1] + page[26:]


def tiny_packets(size: int) -> bytes:
    """A stream whose pages hold 255 packets of one byte, each of which is 60 ms of silence."""
    head, page = OggOpusWriter().head(), page_of(255, b"\x18")
    return head + page * ((size - len(head)) // len(page))


def empty_pages(size: int) -> bytes:
    """Pages without any packet."""
    head, page = OggOpusWriter().head(), page_of(0, b"")
    return head + page * ((size - len(head)) // len(page))


async def attack(url: str, messages: list[str | bytes], repeats: int = 3) -> None:
    """Send the messages, read until the server's close or for a second, then drop the connection."""
    for _ in range(repeats):
        client = await connect(url, compression=None, proxy=None)
        with suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(1):
                for message in messages:
                    await client.send(message)
                while True:
                    await client.recv()
        client.transport.abort()


def chat(*streams: bytes) -> tuple[str, list[str | bytes]]:
    return "/api/chat", [b"\x01" + stream for stream in streams]


ATTACKS: dict[str, tuple[str, list[str | bytes]]] = {
    "headers, 1 MiB": chat(headers_only(LARGEST)),
    "headers, 64 KiB": chat(*[headers_only(LARGEST_OGG)] * 16),
    "packets, 1 MiB": chat(tiny_packets(LARGEST)),
    "packets, 64 KiB": chat(*[tiny_packets(LARGEST_OGG)] * 16),
    "empty pages": chat(*[empty_pages(LARGEST_OGG)] * 16),
    "PCM at 8 kHz, 1 MiB": ("/v1/converse", [start(audio={"sample_rate": 8000}), *[bytes(2**20)] * 4]),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(shared_models: Path) -> AsyncIterator[MeasuredServer]:
    async with serve_measured(shared_models) as server:
        yield server


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ATTACKS)
@best_of_three
async def test_other_sessions_are_not_delayed(measured: MeasuredServer, name: str) -> None:
    path, messages = ATTACKS[name]
    async with measured.neighbour() as felt:
        await attack(measured.websocket_url + path, messages)
        await asyncio.sleep(0.3)
    print(f"{name}: loop lag {felt.loop_lag_ms:.1f} ms, frame gap {felt.frame_gap_ms:.0f} ms")
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frame_gap_ms < FRAME_GAP_MS
    assert felt.frames > 10


async def test_an_ogg_message_beyond_its_limit_ends_the_session(serve: Callable[..., Any]) -> None:
    async with serve() as server, server.connect("/api/chat") as client:
        await client.send(b"\x01" * 65_537)
        with suppress(ConnectionClosed):
            while True:
                await client.recv()
        assert client.close_code == 1009


async def test_no_opus_state_before_the_key_is_checked(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name in ("OggOpusReader", "OggOpusWriter"):
        monkeypatch.setattr(f"gateway.api.websocket.chat.{name}", lambda name=name: made.append(name))
    async with serve(api_keys=["key"]) as server, server.connect("/api/chat") as client:
        with suppress(ConnectionClosed):
            while True:
                await client.recv()
        assert client.close_code == 1008
    assert made == []
