"""How fast a call starts, and what that costs those who talk: `make bench-start`.

First and second call of a persona with a 300-column prompt, timed at the caller from dialling to being heard, over
gRPC; medians of several personas. Then callers who talk in real time, half of the time alone and half of it while new
personas of 300 columns are prefilled one after the other: what their frames take, seen by them.

On tiny models a prefill takes hardly more than what a call costs by itself; on larger ones the ratio is that of a real
model. So both are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc as rpc
from gateway.manifest import Manifest
from gateway.session.persona import SILENT_FRAMES
from gateway.session.tokenizer import Tokenizer
from gateway.voices.registry import VoiceRegistry
from loadtest.server import started
from model_repository.build import build_repository
from model_repository.tiny import write_tiny_checkpoint

FRAME_SECONDS = 0.08
LATE_MS = 80.0
COLUMNS = 300
VOICE = "NATF0"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "larger": {"lm": {"dim": 1024, "num_layers": 4, "num_heads": 8, "context": 1000}},
}
"""What differs from a tiny checkpoint; the larger one's temporal model has 85 million parameters."""


class Personas:
    """Texts that make a prompt of COLUMNS columns with VOICE, each like no other."""

    def __init__(self, models: Path) -> None:
        manifest = Manifest.load(models)
        self._tokenizer = Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)
        self._length = COLUMNS - VoiceRegistry(manifest).require(VOICE).frames - 2 * SILENT_FRAMES
        self._made = 0

    def next(self) -> str:
        self._made += 1
        text = f"You are number {self._made}."
        words = ("one", "who", "knows", "the", "sea", "a")
        for word in range(10_000):
            longer = f"{text} {words[word % len(words)]}"
            if len(self._tokenizer.encode_prompt(longer)) > self._length:
                break
            text = longer
        return text


class ConversationLease:
    """A live call, timed from the caller's side."""

    def __init__(self, stub: rpc.PersonaPlexStub) -> None:
        self._call = stub.Converse()

    async def begin(self, text: str) -> float:
        """Seconds until the caller is heard."""
        began = time.perf_counter()
        start = pb.Start(voice=VOICE, text_prompt=text, sampling=pb.Sampling(seed=1))
        await self._call.write(pb.ConverseRequest(start=start))
        await self._read("ready")
        ready = time.perf_counter() - began
        await self._read("audio")
        return ready

    async def frame(self, pcm: bytes) -> float:
        """Seconds from the frame being handed over to its answer being there."""
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
                raise RuntimeError(f"the call ended: {await self._call.details()}")
            if message.WhichOneof("message") == kind:
                return


async def starts(stub: rpc.PersonaPlexStub, personas: Personas, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to ready of each persona's first and second call."""
    times: dict[str, list[float]] = {"first": [], "second": []}
    # The very first one waits for what is done once, such as memory being planned.
    for _ in range(rounds + 1):
        text = personas.next()
        for kind in times:
            call = ConversationLease(stub)
            times[kind].append(1e3 * await call.begin(text))
            await call.end()
    return {kind: values[1:] for kind, values in times.items()}


@dataclass
class Talk:
    """What callers' frames took, in milliseconds, and how many others began meanwhile."""

    frames: list[float] = field(default_factory=list)
    prefills: int = 0

    def stats(self) -> dict[str, float]:
        p50, p99 = np.percentile(self.frames, [50, 99])
        late = sum(ms > LATE_MS for ms in self.frames)
        most = max(self.frames)
        return {"p50": float(p50), "p99": float(p99), "most": most, "late": late, "prefills": self.prefills}


async def talks(
    stub: rpc.PersonaPlexStub, personas: Personas, callers: int, seconds: float, rounds: int
) -> dict[str, Talk]:
    """Callers who talk all along; in every other period new personas are prefilled as fast as they can be."""
    heard = {"alone": Talk(), "while others begin": Talk()}
    period = ["alone"]
    over = asyncio.Event()

    async def talk(index: int) -> None:
        random = np.random.default_rng(index)
        call = ConversationLease(stub)
        await call.begin("")
        await asyncio.sleep(FRAME_SECONDS * index / callers)
        due = time.perf_counter()
        while not over.is_set():
            pcm = (random.standard_normal(1920) * 1500).astype("<i2").tobytes()
            now = period[0]
            heard[now].frames.append(1e3 * await call.frame(pcm))
            due = max(due + FRAME_SECONDS, time.perf_counter() - FRAME_SECONDS)
            await asyncio.sleep(max(due - time.perf_counter(), 0))
        await call.end()

    async def begin_others() -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            call = ConversationLease(stub)
            await call.begin(personas.next())
            await call.end()
            heard["while others begin"].prefills += 1

    talking = [asyncio.create_task(talk(index)) for index in range(callers)]
    await asyncio.sleep(2.0)
    for talk_so_far in heard.values():
        talk_so_far.frames.clear()
    for _ in range(rounds):
        for kind, during in (("alone", lambda: asyncio.sleep(seconds)), ("while others begin", begin_others)):
            await _period(period, kind, during)
    over.set()
    await asyncio.gather(*talking)
    return heard


async def _period(period: list[str], kind: str, during: Callable[[], Awaitable[None]]) -> None:
    period[0] = kind
    await during()


def measure(models: Path, log: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Of one repository."""
    personas = Personas(models)

    async def run(target: str) -> dict[str, Any]:
        async with grpc.aio.insecure_channel(target) as channel:
            stub = rpc.PersonaPlexStub(channel)  # type: ignore[no-untyped-call]
            ready = await starts(stub, personas, asked.personas)
            heard = await talks(stub, personas, asked.callers, asked.seconds, asked.rounds)
        medians = {kind: float(np.median(times)) for kind, times in ready.items()}
        talking = {kind: talk.stats() for kind, talk in heard.items()}
        return {"ready_ms": medians, "ratio": medians["second"] / medians["first"], "times": ready, "talking": talking}

    with started(models, log) as server:
        return asyncio.run(run(server.grpc))


def build(name: str, folder: Path, slots: int) -> Path:
    """A repository of one of the SIZES, always anew."""
    write_tiny_checkpoint(folder / name / "checkpoint", force=True, config=SIZES[name])
    build_repository(folder / name / "checkpoint", folder / name / "models", slots=slots, force=True)
    return folder / name / "models"


def _print(stats: dict[str, Any]) -> None:
    console = Console()
    ready = Table(f"ms to ready, {COLUMNS} columns", "first call", "second call", "ratio")
    talking = Table("ms per frame of live callers", "", "p50", "p99", "most", "late", "prefills")
    for name, of in stats["models"].items():
        ready.add_row(name, *(f"{of['ready_ms'][kind]:.1f}" for kind in ("first", "second")), f"{of['ratio']:.1%}")
        for kind, values in of["talking"].items():
            numbers = [f"{values[key]:.1f}" for key in ("p50", "p99", "most")]
            talking.add_row(name, kind, *numbers, str(values["late"]), str(values["prefills"]))
    console.print(ready)
    console.print(talking)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a built repository; by default a tiny and a larger one are made")
    parser.add_argument("--personas", type=int, default=9, help="personas whose calls are timed (default 9)")
    parser.add_argument("--callers", type=int, default=4, help="live callers (default 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a period of talking (default 10)")
    parser.add_argument("--rounds", type=int, default=2, help="periods of each kind (default 2)")
    parser.add_argument("--out", type=Path, default=Path("build/start"), help="folder for models, logs and JSON")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.models:
        repositories = {asked.models.name: asked.models}
    else:
        repositories = {name: build(name, asked.out, asked.callers + 1) for name in SIZES}
    measured = {name: measure(models, asked.out / f"{name}.log", asked) for name, models in repositories.items()}
    stats = {
        "models": measured,
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "onnxruntime": ort.__version__,
    }
    (asked.out / "start.json").write_text(json.dumps(stats, indent=1) + "\n")
    _print(stats)


if __name__ == "__main__":
    main()
