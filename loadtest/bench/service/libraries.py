"""Measure the two places where the gateway has code of its own instead of a library: `make bench-libraries`.

Calls to Triton: `gateway.engine.triton.http` beside `tritonclient` over gRPC and aiohttp, one call at a time to a
Python model that returns its input, with the audio of one frame and of 24. A live frame makes four calls.

Opus in Ogg: `gateway.audio.ogg_opus` beside sphn, one frame at a time, and a message of 64 KiB that only holds packets
of one byte (lost frames), which is the most work that a client of `/api/chat` can send at once.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import aiohttp
import numpy as np
import sphn
import tritonclient.grpc.aio as triton_grpc
from numpy.typing import NDArray
from rich.table import Table

from gateway.audio.ogg import OggWriter
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.cli.console import result_console
from gateway.engine.triton.http import TritonHttp
from gateway.engine.triton.requests import TensorSpec, request_head
from gateway.triton_server import TritonServer
from loadtest.bench.service.overhead import EchoModels
from loadtest.machine import machine

MODEL = "echo0"
FRAME = 1920
DEADLINE_S = 10.0
LARGEST_MESSAGE = 65_536
_LOST = b"\x18"
"""An Opus packet without data: 60 ms that were lost (RFC 6716 section 3.1)."""

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Call = Callable[[NDArray[np.float32]], Awaitable[NDArray[np.float32]]]


async def calls_to_triton(server: TritonServer, calls: int, rounds: int) -> dict[int, dict[str, tuple[float, float]]]:
    """Median milliseconds and this process's CPU milliseconds per call, by frames in the call and client."""
    http = TritonHttp(server.http_url)
    measured: dict[int, dict[str, tuple[float, float]]] = {}
    async with aiohttp.ClientSession() as session, triton_grpc.InferenceServerClient(server.grpc_url) as grpc:

        def request(x: NDArray[np.float32]) -> list[bytes]:
            return [request_head(MODEL, [TensorSpec("x", "FP32", x.shape)]), x.tobytes()]

        async def ours(x: NDArray[np.float32]) -> NDArray[np.float32]:
            return (await http.request(request(x), DEADLINE_S))["y"]

        async def with_aiohttp(x: NDArray[np.float32]) -> NDArray[np.float32]:
            head, body = request(x)
            lines, _, header = head.partition(b"\r\n\r\n")
            names = dict(line.split(": ", 1) for line in lines.decode().split("\r\n")[1:])
            url = f"http://{server.http_url}/v2/models/{MODEL}/infer"
            headers = {"Inference-Header-Content-Length": names["Inference-Header-Content-Length"]}
            async with session.post(url, data=header + body, headers=headers) as response:
                answer = await response.read()
                start = int(response.headers["Inference-Header-Content-Length"])
            return np.frombuffer(answer, np.float32, -1, start)

        async def with_tritonclient(x: NDArray[np.float32]) -> NDArray[np.float32]:
            sent = triton_grpc.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
            answer: NDArray[np.float32] = (await grpc.infer(MODEL, [sent])).as_numpy("y")
            return answer

        clients: dict[str, Call] = {"gateway": ours, "aiohttp": with_aiohttp, "tritonclient, gRPC": with_tritonclient}
        for frames in (1, 24):
            x = np.random.default_rng(0).standard_normal(frames * FRAME).astype(np.float32)
            samples: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
            for _ in range(rounds):
                for name, call in clients.items():
                    assert np.array_equal(await call(x), x)  # noqa: S101 - warms up, and checks the client
                    for _ in range(calls):
                        began, cpu = time.perf_counter(), time.process_time()
                        await call(x)
                        samples[name].append((time.perf_counter() - began, time.process_time() - cpu))
            measured[frames] = {
                name: (1e3 * median(wall for wall, _ in pairs), 1e3 * median(cpu for _, cpu in pairs))
                for name, pairs in samples.items()
            }
    await http.close()
    return measured


def opus_in_ogg(frames: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds to read and to write 80 ms, by implementation."""
    pcm = (np.random.default_rng(0).standard_normal((frames, FRAME)) * 0.1).astype(np.float32)
    reading: dict[str, list[float]] = {"gateway": [], "sphn": []}
    writing: dict[str, list[float]] = {"gateway": [], "sphn": []}
    for _ in range(rounds):
        writer, peer = OggOpusWriter(), sphn.OpusStreamWriter(24_000)
        pages = [writer.head()]
        for frame in pcm:
            pages.append(_timed(writing["gateway"], writer.write, frame))
            _timed(writing["sphn"], peer.append_pcm, frame)
        reader, peer_reader = OggOpusReader(), sphn.OpusStreamReader(24_000)

        def read(data: bytes, reader: OggOpusReader = reader) -> list[Any]:
            return list(reader.read(data))

        for page in pages:
            _timed(reading["gateway"], read, page)
            _timed(reading["sphn"], peer_reader.append_bytes, page)
    return {name: (1e3 * median(reading[name]), 1e3 * median(writing[name])) for name in reading}


def largest_message() -> dict[str, str]:
    """What a message of lost frames costs: the longest step of the reader, by implementation."""
    head, ogg = OggOpusWriter().head(), OggWriter(42)
    # Only the sequence numbers of the two header pages are needed.
    ogg.page(b"", 0), ogg.page(b"", 0)
    page = len(ogg.page(_LOST, 0))
    message = b"".join(ogg.page(_LOST, 0) for _ in range(LARGEST_MESSAGE // page))
    reader, worst, samples = OggOpusReader(), 0.0, 0
    list(reader.read(head))
    began = at = time.perf_counter()
    for start in range(0, len(message), 4096):
        for pcm in reader.read(message[start : start + 4096]):
            now = time.perf_counter()
            worst, at, samples = max(worst, now - at), now, samples + len(pcm)
    whole = time.perf_counter() - began
    found = {"gateway": f"{1e3 * worst:.1f} ms ({samples / 24_000:.0f} s of audio in {1e3 * whole:.0f} ms)"}
    peer = sphn.OpusStreamReader(24_000)
    peer.append_bytes(head)
    began = time.perf_counter()
    try:
        decoded = len(peer.append_bytes(message)) / 24_000
        found["sphn"] = f"{1e3 * (time.perf_counter() - began):.1f} ms ({decoded:.0f} s of audio in one call)"
    except ValueError as error:
        found["sphn"] = f"refused: {error}"
    return found


def _timed(seconds: list[float], function: Callable[[Argument], Result], argument: Argument) -> Result:
    """Call the function, and append the seconds that it took."""
    began = time.perf_counter()
    result = function(argument)
    seconds.append(time.perf_counter() - began)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100, help="calls per round and client (default 100)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in which the clients alternate (default 5)")
    options = parser.parse_args()
    console = result_console()
    with tempfile.TemporaryDirectory() as folder, TritonServer(EchoModels.write(Path(folder))) as server:
        measured = asyncio.run(calls_to_triton(server, options.calls, options.rounds))
    table = Table("a call to Triton", "1 frame", "CPU", "24 frames", "CPU")
    for name in measured[1]:
        table.add_row(name, *(f"{value:.2f} ms" for frames in (1, 24) for value in measured[frames][name]))
    console.print(table)
    table = Table("80 ms of Opus in Ogg", "read", "write", "longest step for 64 KiB of lost frames")
    largest = largest_message()
    for name, (read, write) in opus_in_ogg(options.calls, options.rounds).items():
        table.add_row(name, f"{read:.3f} ms", f"{write:.3f} ms", largest[name])
    console.print(table)
    console.print(machine()["processor"])


if __name__ == "__main__":
    main()
