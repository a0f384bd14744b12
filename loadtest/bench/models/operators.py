"""Measure a frame's time by operator: `python -m loadtest.bench.models.operators` prints JSON.

Uses ONNX Runtime's profile of every node, for one number of conversations and one context. Profiling adds time, most to
small nodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import onnxruntime as ort

from loadtest.bench.models.bytes_read import STAGES
from loadtest.bench.models.graph_frames import WARM_UP, Frames

_KERNEL = "_kernel_time"


def operators(models: Path, rows: int, context: int, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return by stage and operator: number of nodes, and their milliseconds per frame (medians over `count` frames)."""
    sessions: dict[str, ort.InferenceSession] = {}
    plain = ort.InferenceSession
    with tempfile.TemporaryDirectory() as folder:

        def profiled(model: str, options: ort.SessionOptions, **others: Any) -> ort.InferenceSession:
            name = Path(model).parents[1].name
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / name)
            sessions[name] = plain(model, options, **others)
            return sessions[name]

        with mock.patch.object(ort, "InferenceSession", profiled):
            frames = Frames(models, rows)
        for _ in range(WARM_UP + count):
            frames.frame(rows, context)
        return {stage: _by_operator(sessions[model].end_profiling(), count) for stage, model in STAGES.items()}


def _by_operator(profile: str, count: int) -> dict[str, dict[str, float]]:
    durations: dict[str, list[float]] = defaultdict(list)
    kinds = {}
    for event in json.loads(Path(profile).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            durations[event["name"]].append(event["dur"] / 1e3)
            kinds[event["name"]] = event["args"]["op_name"]
    totals: dict[str, dict[str, float]] = {}
    for name, times in durations.items():
        total = totals.setdefault(kinds[name], {"nodes": 0, "ms": 0.0})
        total["nodes"] += 1
        total["ms"] = round(total["ms"] + statistics.median(times[-count:]), 4)
    return dict(sorted(totals.items(), key=lambda item: -item[1]["ms"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=1500)
    parser.add_argument("--frames", type=int, default=15)
    arguments = parser.parse_args()
    found = operators(arguments.models, arguments.rows, arguments.context, arguments.frames)
    print(json.dumps({"rows": arguments.rows, "context": arguments.context, "stages": found}))


if __name__ == "__main__":
    main()
