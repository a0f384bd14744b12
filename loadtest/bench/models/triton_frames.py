"""Measure whole frames through Triton, sent as the gateway sends them: one batch per stage.

Contexts are made by prefill: one conversation computes it, the others restore the cached prefix.
`python -m loadtest.bench.models.triton_frames` prints JSON: frame times, prefill times and the server's memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gateway.triton_server import TritonServer
from loadtest.bench.models.bytes_read import STAGES
from loadtest.bench.models.graph_frames import Group, arguments, grouped, memory_rate
from loadtest.bench.models.triton_models import Array, Conversation, TritonModels, sampling

_WARM_UP = 1
"""Frames of a group: the models have run before, but measuring the memory's rate empties the caches."""


class TritonFrames:
    """Frames of several conversations through the models of one Triton."""

    def __init__(self, models: TritonModels, manifest: Mapping[str, Any], max_columns: int) -> None:
        self._models = models
        self._sampling = manifest["sampling"]
        self._random = np.random.default_rng(0)
        cards = [manifest["text_card"], *[manifest["card"]] * 16]
        self._past = self._random.integers(0, cards, (max_columns, len(cards)))

    def begin(self, context: int) -> tuple[Conversation, dict[str, Any]]:
        """Start a conversation with `context` columns; it, and how long that took."""
        conversation = self._models.open()
        began = time.perf_counter()
        cached = self._models.prefill(conversation, self._past[:context], self._sampler("text", context))
        seconds = round(time.perf_counter() - began, 4)
        return conversation, {"columns": context, "computed": context - cached, "seconds": seconds}

    def frame(self, conversations: Sequence[Conversation], position: int) -> dict[str, float]:
        """Milliseconds of each stage of one frame of all `conversations`."""
        models, count = self._models, len(conversations)
        pcm = 0.05 * self._random.standard_normal((count, 1920), np.float32)
        times = [time.perf_counter()]
        codes = models.batch("mimi_encoder", conversations, {"pcm": pcm})["codes"]
        columns = np.concatenate([self._past[:count, :9], codes], axis=1)[:, None]
        times.append(time.perf_counter())
        step = models.batch("temporal", conversations, {"columns": columns, **self._samplers("text", position, count)})
        temporal = {name: step[name] for name in ("hidden", "text_token")}
        times.append(time.perf_counter())
        agent = models.depformer({**temporal, **self._samplers("audio", position, count)})
        times.append(time.perf_counter())
        models.batch("mimi_decoder", conversations, {"codes": agent})
        times.append(time.perf_counter())
        return dict(zip(STAGES, 1e3 * np.diff(times), strict=True))

    def _sampler(self, kind: str, position: int) -> dict[str, Array]:
        top_k, temperature = self._sampling[f"{kind}_top_k"], self._sampling[f"{kind}_temperature"]
        return sampling(1, position, top_k, temperature)

    def _samplers(self, kind: str, position: int, count: int) -> dict[str, Array]:
        return {name: np.repeat(array[None], count, axis=0) for name, array in self._sampler(kind, position).items()}


def measure(models: TritonModels, manifest: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Frames for every number of rows and context, and how long starting conversations took.

    Numbers of rows take turns, so that a change of the machine's speed affects all of them. Each group has new
    conversations.
    """
    cases, begun = [], []
    frames = TritonFrames(models, manifest, max(options.contexts))
    for context in options.contexts:
        groups: dict[int, list[Group]] = {rows: [] for rows in options.rows}
        for rows in options.rows * options.groups:
            started = [frames.begin(context) for _ in range(rows)]
            conversations = [conversation for conversation, _ in started]
            begun += [took for _, took in started]
            before = memory_rate(options.threads)
            measured = [frames.frame(conversations, context + index) for index in range(_WARM_UP + options.frames)]
            groups[rows].append(Group(measured[_WARM_UP:], (before, memory_rate(options.threads))))
            for conversation in conversations:
                models.close(conversation)
        cases += [grouped(rows, context, of_rows) for rows, of_rows in groups.items()]
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
    options = arguments(__doc__)
    manifest = json.loads((options.models / "manifest.json").read_text())
    began = time.perf_counter()
    with TritonServer(options.models / "triton") as server:
        ready = time.perf_counter() - began
        models = TritonModels(server.http_url, manifest["frame_size"], manifest["codebooks"])
        try:
            found = measure(models, manifest, options)
        except Exception:
            print(*server.log, sep="\n", file=sys.stderr)
            raise
        models.disconnect()
        print(json.dumps({**found, "ready_seconds": round(ready, 2), "slots": manifest["slots"], "memory": memory()}))


if __name__ == "__main__":
    main()
