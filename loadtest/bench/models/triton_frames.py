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
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from gateway.engine.prefix import PromptPrefix
from gateway.engine.triton.backend import TritonBackend
from gateway.manifest import Manifest
from gateway.triton_server.server import TritonServer
from loadtest.bench.models.bytes_read import STAGES
from loadtest.bench.models.graph_frames import Group, arguments, grouped, memory_rate

DEADLINE = 1800.0
"""Seconds; a slow answer is a figure, not an error."""

_WARM_UP = 1
"""Frames of a group: the models have run before, but what measures the memory's rate empties the caches."""


class Served:
    """Conversations in the slots of one backend."""

    def __init__(self, backend: TritonBackend, manifest: Manifest, max_steps: int) -> None:
        self._backend = backend
        self._manifest = manifest
        self._random = np.random.default_rng(0)
        cards = [manifest.text_card, *[manifest.card] * 16]
        self._past = self._random.integers(0, cards, (max_steps, len(cards)))

    async def begin(self, slot: int, context: int) -> dict[str, Any]:
        """Start a conversation of `context` steps in a slot; returns how long that took."""
        embeddings = np.zeros((0, self._manifest.dim), np.float32)
        prefix = PromptPrefix(embeddings, self._past[:context], np.full(17, -1, np.int64))
        await self._backend.open(slot)
        began = time.perf_counter()
        done = await self._backend.prefill(slot, prefix, *self._samplers("text", 1, context), no_wait)
        seconds = round(time.perf_counter() - began, 4)
        return {"columns": context, "computed": context - done.cached, "seconds": seconds}

    async def frame(self, slots: NDArray[np.int64], position: int) -> dict[str, float]:
        """Milliseconds of each stage of a frame of all `slots`."""
        backend, count = self._backend, len(slots)
        speech = 0.05 * self._random.standard_normal((count, 1920), np.float32)
        times = [time.perf_counter()]
        user_codes = await backend.encode(slots, speech)
        steps = np.concatenate([self._past[:count, :9], user_codes], axis=1)
        times.append(time.perf_counter())
        output = await backend.step(slots, steps, *self._samplers("text", count, position))
        times.append(time.perf_counter())
        agent_codes = await backend.depformer(output, *self._samplers("audio", count, position))
        times.append(time.perf_counter())
        await backend.decode(slots, agent_codes)
        times.append(time.perf_counter())
        return dict(zip(STAGES, 1e3 * np.diff(times), strict=True))

    def _samplers(self, stream: str, count: int, position: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        top_k, temperature = (getattr(self._manifest.sampling, f"{stream}_{name}") for name in ("top_k", "temperature"))
        return np.full((count, 3), (1, position, top_k), np.int64), np.full((count, 1), temperature, np.float32)


async def no_wait() -> None:
    """No batch runs beside the prefill."""


async def measure(url: str, manifest: Manifest, asked: argparse.Namespace) -> dict[str, Any]:
    """Frames for every batch size and context, and how long conversations took to start.

    Batch sizes take turns, so that a machine that is faster at times is so for all of them. Each group has new
    conversations.
    """
    cases, begun = [], []
    backend = TritonBackend(url, manifest, step_deadline=DEADLINE, prefill_deadline=DEADLINE)
    served = Served(backend, manifest, max(asked.contexts))
    for context in asked.contexts:
        groups: dict[int, list[Group]] = {rows: [] for rows in asked.rows}
        for rows in asked.rows * asked.groups:
            slots = np.arange(rows)
            begun += [await served.begin(slot, context) for slot in range(rows)]
            before = memory_rate(asked.threads)
            frames = [await served.frame(slots, context + index) for index in range(_WARM_UP + asked.frames)]
            groups[rows].append(Group(frames[_WARM_UP:], (before, memory_rate(asked.threads))))
            for slot in range(rows):
                await backend.release(slot)
        cases += [grouped(rows, context, of_rows) for rows, of_rows in groups.items()]
    await backend.close()
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
