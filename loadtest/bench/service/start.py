"""Measure how fast a conversation starts, and what its prefill costs live users: `make bench-start`.

A persona of 300 columns is prefilled by its first conversation and restored from the cache for its second one. The
time to `ready` of both is measured over gRPC; the result is the median of several personas. Then live users send in
real time, half of the time alone and half of it while new personas are prefilled one after the other; their frame
latencies are compared.

With tiny models a prefill takes little more than a call; with larger ones the ratio is that of a real model. Both are
measured. With `--fake-device` the models take the time of a GPU for the 7B, full windows included. Processors that are
too slow for many users can have fewer of them, each with the device time of several (`--rows-per-user`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.table import Table
from sentencepiece import SentencePieceProcessor

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc as rpc
from gateway.cli.console import result_console
from loadtest.fake_device.build import write_fake_repository
from loadtest.fake_device.profiles import PROFILES, Profile
from loadtest.machine import machine
from loadtest.server import started
from model_repository.build import build_repository
from model_repository.synthetic.tiny import write_tiny_checkpoint

FRAME_SECONDS = 0.08
LATE_MS = 80.0
VOICE = "NATF0"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "larger": {"lm": {"dim": 1024, "num_layers": 4, "num_heads": 8, "context": 1000}},
}
"""Differences from a tiny checkpoint; the larger one's temporal model has 85 million parameters."""
SILENT_FRAMES = 6
"""Frames of silence before and after the text of a prompt."""


class Personas:
    """Texts that make a prompt of so many columns with VOICE, all different."""

    def __init__(self, models: Path, columns: int) -> None:
        manifest = json.loads((models / "manifest.json").read_text())
        self._tokenizer = SentencePieceProcessor(model_file=str(models / manifest["tokenizer"]))
        self._length = columns - manifest["voices"][VOICE]["frames"] - 2 * SILENT_FRAMES
        self._made = 0

    def next(self) -> str:
        self._made += 1
        text = f"You are number {self._made}."
        words = ("one", "who", "knows", "the", "sea", "a")
        for word in range(10_000):
            longer = f"{text} {words[word % len(words)]}"
            if len(self._tokenizer.encode(f"<system> {longer} <system>")) > self._length:
                break
            text = longer
        return text


class TimedConversation:
    """A live conversation that measures its own times, at the client."""

    def __init__(self, stub: rpc.PersonaPlexStub) -> None:
        self._call = stub.Converse()

    async def begin(self, text: str) -> float:
        """Start the conversation; seconds until the server is ready."""
        began = time.perf_counter()
        start = pb.Start(voice=VOICE, text_prompt=text, sampling=pb.Sampling(seed=1))
        await self._call.write(pb.ConverseRequest(start=start))
        await self._read("ready")
        ready = time.perf_counter() - began
        await self._read("audio")
        return ready

    async def frame(self, pcm: bytes) -> float:
        """Send one frame; seconds until its answer has been received."""
        message = pb.ConverseRequest(audio=pcm)
        began = time.perf_counter()
        await self._call.write(message)
        await self._read("audio")
        return time.perf_counter() - began

    async def end(self) -> None:
        await self._call.write(pb.ConverseRequest(end=pb.End()))
        while await self._call.read() is not grpc.aio.EOF:
            pass

    async def _read(self, kind: str) -> None:
        while True:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                raise RuntimeError(f"the server ended the conversation: {await self._call.details()}")
            if message.WhichOneof("message") == kind:
                return


async def starts(stub: rpc.PersonaPlexStub, personas: Personas, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to `ready` of each persona's first and second conversation."""
    times: dict[str, list[float]] = {"first": [], "second": []}
    # The first persona is a warm-up.
    for _ in range(rounds + 1):
        text = personas.next()
        for kind in times:
            call = TimedConversation(stub)
            times[kind].append(1e3 * await call.begin(text))
            await call.end()
    return {kind: values[1:] for kind, values in times.items()}


@dataclass
class LiveFrames:
    """Frame latencies of live users in milliseconds, and the number of prefills meanwhile."""

    frames: list[float] = field(default_factory=list)
    prefills: int = 0

    def stats(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.frames, [50, 99])
        late = sum(ms > LATE_MS for ms in self.frames)
        most = max(self.frames)
        return {"p50": float(p50), "p99": float(p99), "most": most, "late": late, "prefills": self.prefills}


async def live_frames(
    stub: rpc.PersonaPlexStub, personas: Personas, users: int, seconds: float, rounds: int, pause: float
) -> dict[str, LiveFrames]:
    """Latencies of users that send all the time; every other period, new personas are prefilled one by one."""
    found = {"alone": LiveFrames(), "during prefills": LiveFrames()}
    period = ["alone"]
    over = asyncio.Event()

    async def send(index: int) -> None:
        random = np.random.default_rng(index)
        call = TimedConversation(stub)
        await call.begin("")
        await asyncio.sleep(FRAME_SECONDS * index / users)
        due = time.perf_counter()
        while not over.is_set():
            pcm = (random.standard_normal(1920) * 1500).astype("<i2").tobytes()
            now = period[0]
            found[now].frames.append(1e3 * await call.frame(pcm))
            due = max(due + FRAME_SECONDS, time.perf_counter() - FRAME_SECONDS)
            await asyncio.sleep(max(due - time.perf_counter(), 0))
        await call.end()

    async def prefill() -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            call = TimedConversation(stub)
            await call.begin(personas.next())
            await call.end()
            found["during prefills"].prefills += 1
            await asyncio.sleep(pause)

    sending = [asyncio.create_task(send(index)) for index in range(users)]
    await asyncio.sleep(2.0)
    for latencies in found.values():
        latencies.frames.clear()
    for _ in range(rounds):
        for kind, during in (("alone", lambda: asyncio.sleep(seconds)), ("during prefills", prefill)):
            await _period(period, kind, during)
    over.set()
    await asyncio.gather(*sending)
    return found


async def _period(period: list[str], kind: str, during: Callable[[], Awaitable[None]]) -> None:
    period[0] = kind
    await during()


def measure(models: Path, log: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one repository."""
    personas = Personas(models, options.columns)

    async def run(target: str) -> dict[str, Any]:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = rpc.PersonaPlexStub(channel)  # type: ignore[no-untyped-call]
            ready = await starts(stub, personas, options.personas)
            found = await live_frames(stub, personas, options.users, options.seconds, options.rounds, options.pause)
        medians = {kind: float(np.median(times)) for kind, times in ready.items()}
        latencies = {kind: frames.stats() for kind, frames in found.items()}
        return {"ready_ms": medians, "ratio": medians["second"] / medians["first"], "times": ready, "frames": latencies}

    with started(models, log) as server:
        return asyncio.run(run(server.grpc))


def build(name: str, folder: Path, slots: int) -> Path:
    """Build a repository of one of the SIZES."""
    write_tiny_checkpoint(folder / name / "checkpoint", force=True, config=SIZES[name])
    build_repository(folder / name / "checkpoint", folder / name / "models", slots=slots, force=True)
    return folder / name / "models"


def build_fake(folder: Path, options: argparse.Namespace) -> Path:
    """Write the repository of a fake device, on which a user takes the time of `rows_per_user` rows."""
    rows = options.rows_per_user
    timings = {
        name: replace(timing, row=rows * timing.row, position=rows * timing.position)
        for name, timing in PROFILES[options.fake_device].items()
    }
    return write_fake_repository(folder / f"fake-{options.fake_device}", timings, options.users + 1)


def _print(stats: dict[str, Any]) -> None:
    console = result_console()
    ready = Table(f"ms to ready, {stats['columns']} columns", "first conversation", "second conversation", "ratio")
    live = Table("ms per frame of live users", "", "p50", "p99", "most", "late", "prefills")
    for name, of in stats["models"].items():
        ready.add_row(name, *(f"{of['ready_ms'][kind]:.1f}" for kind in ("first", "second")), f"{of['ratio']:.1%}")
        for kind, values in of["frames"].items():
            numbers = [f"{values[key]:.1f}" for key in ("p50", "p99", "most")]
            live.add_row(name, kind, *numbers, str(values["late"]), str(values["prefills"]))
    console.print(ready)
    console.print(live)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a built repository; by default a tiny and a larger one are made")
    parser.add_argument("--fake-device", type=Profile, choices=list(Profile), help="measure a fake GPU instead")
    parser.add_argument("--rows-per-user", type=int, default=1, help="of a fake GPU (default 1)")
    parser.add_argument("--columns", type=int, default=300, help="columns of a persona (default 300)")
    parser.add_argument("--personas", type=int, default=9, help="personas to measure (default 9)")
    parser.add_argument("--users", type=int, default=4, help="live users (default 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a period (default 10)")
    parser.add_argument("--rounds", type=int, default=2, help="periods of each kind (default 2)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between personas of a period (default 0)")
    parser.add_argument("--out", type=Path, default=Path("build/start"), help="folder for models, logs and JSON")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.fake_device:
        repositories = {options.fake_device.value: build_fake(options.out, options)}
    elif options.models:
        repositories = {options.models.name: options.models}
    else:
        repositories = {name: build(name, options.out, options.users + 1) for name in SIZES}
    measured = {name: measure(models, options.out / f"{name}.log", options) for name, models in repositories.items()}
    stats = {
        "models": measured,
        "columns": options.columns,
        "users": options.users,
        "rows_per_user": options.rows_per_user,
        "machine": machine(),
    }
    (options.out / "start.json").write_text(json.dumps(stats, indent=1) + "\n")
    _print(stats)


if __name__ == "__main__":
    main()
