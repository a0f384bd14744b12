"""Measure whole frames through Triton, sent as the gateway sends them: one batch per stage.

Contexts are made by prefill: one conversation computes it, the others restore the cached prefix.
`python -m loadtest.bench.models.triton_frames` prints JSON: frame times, prefill times and the server's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gateway.engine.backend import Draw, Session
from gateway.engine.triton.backend import TritonEngine
from gateway.manifest import Manifest
from gateway.triton_server.server import TritonServer
from loadtest.bench.models.bytes_read import STAGES
from loadtest.bench.models.graph_frames import Group, arguments, grouped, memory_rate

DEADLINE = 1800.0
"""Seconds; a slow answer is a figure, not an error."""

_WARM_UP = 1
"""Frames of a group: the models have run before, but what measures the memory's rate empties the caches."""


class Served:
    """Conversations on one engine."""

    def __init__(self, engine: TritonEngine, manifest: Manifest, most_columns: int) -> None:
        self._engine = engine
        self._sampling = manifest.sampling
        self._random = np.random.default_rng(0)
        cards = [manifest.text_card, *[manifest.card] * 16]
        self._past = self._random.integers(0, cards, (most_columns, len(cards)))
        self._no_embeddings = np.zeros((0, manifest.dim), np.float32)

    async def begin(self, context: int) -> tuple[Session, dict[str, Any]]:
        """A conversation of `context` columns, and how long it took to begin."""
        session = self._engine.open()
        began = time.perf_counter()
        done = await session.prefill(self._past[:context], self._no_embeddings, self._draw("text", context))
        seconds = round(time.perf_counter() - began, 4)
        return session, {"columns": context, "computed": context - done.cached, "seconds": seconds}

    async def frame(self, sessions: list[Session], position: int) -> dict[str, float]:
        """Milliseconds of each stage of a frame of all `sessions`."""
        speech = 0.05 * self._random.standard_normal((len(sessions), 1920), np.float32)
        times = [time.perf_counter()]
        heard = await _all(session.encode(pcm) for session, pcm in zip(sessions, speech, strict=True))
        columns = np.concatenate([self._past[: len(sessions), :9], np.stack(heard)], axis=1)
        times.append(time.perf_counter())
        text = self._draw("text", position)
        thoughts = await _all(session.step(column, text) for session, column in zip(sessions, columns, strict=True))
        times.append(time.perf_counter())
        audio = self._draw("audio", position)
        said = await _all(
            session.depformer(thought, audio) for session, thought in zip(sessions, thoughts, strict=True)
        )
        times.append(time.perf_counter())
        await _all(session.decode(codes) for session, codes in zip(sessions, said, strict=True))
        times.append(time.perf_counter())
        return dict(zip(STAGES, 1e3 * np.diff(times), strict=True))

    def _draw(self, kind: str, position: int) -> Draw:
        top_k, temperature = (getattr(self._sampling, f"{kind}_{what}") for what in ("top_k", "temperature"))
        return Draw(1, position, top_k, temperature)


async def _all(runtime: Iterable[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*runtime)


async def measure(url: str, manifest: Manifest, asked: argparse.Namespace) -> dict[str, Any]:
    """Frames for every number of rows and context, and how long conversations took to begin.

    Numbers of rows take turns, so that a machine that is faster at times is so for all of them; a group's
    conversations are new ones.
    """
    cases, begun = [], []
    engine = TritonEngine(url, manifest, step_deadline=DEADLINE, prefill_deadline=DEADLINE)
    served = Served(engine, manifest, max(asked.contexts))
    for context in asked.contexts:
        groups: dict[int, list[Group]] = {rows: [] for rows in asked.rows}
        for rows in asked.rows * asked.groups:
            began = [await served.begin(context) for _ in range(rows)]
            sessions = [session for session, _ in began]
            begun += [took for _, took in began]
            before = memory_rate(asked.threads)
            frames = [await served.frame(sessions, context + index) for index in range(_WARM_UP + asked.frames)]
            groups[rows].append(Group(frames[_WARM_UP:], (before, memory_rate(asked.threads))))
            for session in sessions:
                await session.close()
        cases += [grouped(rows, context, of_rows) for rows, of_rows in groups.items()]
    await engine.close()
    return {"cases": cases, "begun": begun}


def memory() -> dict[str, Any]:
    """Bytes that Triton and its models' processes hold: `rss` resident; `pss` with shared pages counted once; and
    `anonymous`, what of these is no file's page, which the system could drop and read again.
    """
    processes = {}
    for process in psutil.Process().children(recursive=True):
        command = " ".join(process.cmdline())
        model = next((model for model in STAGES.values() if f"/{model}/" in command), None)
        held = process.memory_full_info()
        kinds = {"rss": held.rss, "pss": held.pss, "anonymous": _anonymous(process.pid)}
        processes[model or Path(process.cmdline()[0]).name] = kinds
    totals = {kind: sum(held[kind] for held in processes.values()) for kind in ("rss", "pss", "anonymous")}
    return {**totals, "processes": processes}


def _anonymous(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))


def main() -> None:
    asked = arguments(__doc__)
    manifest = Manifest.load(asked.models)
    began = time.perf_counter()
    with TritonServer(asked.models / "triton") as server:
        ready = time.perf_counter() - began
        try:
            found = asyncio.run(measure(server.http_url, manifest, asked))
        except Exception:
            print(*server.log, sep="\n", file=sys.stderr)
            raise
        print(json.dumps({**found, "ready_seconds": round(ready, 2), "slots": manifest.slots, "memory": memory()}))


if __name__ == "__main__":
    main()
