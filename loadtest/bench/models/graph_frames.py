"""Run complete frames in one process: encode, temporal, depformer and decode, at any batch size and context.

On the CPU the KV caches are filled with random keys and values; the position determines how many of them are used.
`python -m loadtest.bench.models.graph_frames` is the process that measures. It prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.bench.models.bytes_read import STAGES
from loadtest.bench.models.memory_bandwidth import bandwidth
from model_repository.processors import processors
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.device import CudaMemory
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import RowRequest
from model_repository.serving.session import StatefulSession
from model_repository.serving.temporal import TemporalModel

WARM_UP = 3
_POOL = 1 << 20


class Frames:
    """The four models of a repository, with `slots` slots, on the CPU or a `device`."""

    def __init__(self, models: Path, slots: int, device: CudaMemory | None = None) -> None:
        manifest = json.loads((models / "manifest.json").read_text())
        graphs = {stage: models / "triton" / model / "1" / "model.onnx" for stage, model in STAGES.items()}
        text_card, card = manifest["text_card"], manifest["card"]
        self.encoder = MimiModel(graphs["encode"], slots, device=device)
        self.temporal = TemporalModel(graphs["temporal"], slots, text_card, card, manifest["context"] - 1, device)
        self.depformer = DepformerModel(graphs["depformer"], text_card, card, slots, device)
        self.decoder = MimiModel(graphs["decode"], slots, card, device)
        self.window = int(manifest["context"]) - 1
        self._sampling = manifest["sampling"]
        self._columns = np.zeros((slots, 1, 17), np.int64)
        self._random = np.random.default_rng(0)
        self._frames = 0
        session = self.temporal.session
        self._position = session.feeds["position"]
        if isinstance(session, StatefulSession):
            past = {name: self._filled(cache) for name, cache in session.save(0, 1).items()}
            for row in range(slots):
                session.restore(row, past)

    def frame(self, rows: int, context: int) -> dict[str, float]:
        """Run a frame of the first `rows` conversations after `context` steps; return milliseconds by stage."""
        self._position[:rows] = min(context, self.window)
        speech = 0.05 * self._random.standard_normal((rows, 1920), np.float32)
        times = [time.perf_counter()]
        codes = _run(self.encoder, pcm=speech)["codes"]
        self._columns[:rows, 0, 9:] = codes
        times.append(time.perf_counter())
        temporal = _run(self.temporal, columns=self._columns[:rows], **self._sampling_inputs("text", rows))
        times.append(time.perf_counter())
        depformer = _run(self.depformer, **temporal, **self._sampling_inputs("audio", rows))
        self._columns[:rows, 0, :1], self._columns[:rows, 0, 1:9] = temporal["text_token"], depformer["codes"]
        times.append(time.perf_counter())
        _run(self.decoder, **depformer)
        times.append(time.perf_counter())
        self._frames += 1
        return dict(zip(STAGES, 1e3 * np.diff(times), strict=True))

    def chunk(self, positions: int, context: int) -> float:
        """Run so many positions of one conversation's prompt, and a step; return milliseconds."""
        self._position[0] = max(min(context, self.window - positions - 1), 0)
        began = time.perf_counter()
        _run(self.temporal, columns=np.zeros((1, positions + 1, 17), np.int64), **self._sampling_inputs("text", 1))
        return 1e3 * (time.perf_counter() - began)

    def _filled(self, step: NDArray[Any]) -> NDArray[Any]:
        """Return random keys or values [heads, window, head_dim], in the layout and type of one step."""
        heads, _, head_dim = step.shape
        pool = self._random.standard_normal(_POOL, np.float32)
        if step.dtype == np.int8:
            pool = np.rint(40 * pool).clip(-127, 127)
        return np.resize(pool.astype(step.dtype), (heads, self.window, head_dim))

    def _sampling_inputs(self, kind: str, rows: int) -> dict[str, NDArray[Any]]:
        return {
            "sampler": np.tile([1, self._frames, self._sampling[f"{kind}_top_k"]], (rows, 1)),
            "temperature": np.full((rows, 1), self._sampling[f"{kind}_temperature"], np.float32),
        }


def _run(model: Any, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Outputs [rows, ...] of the first rows, which have begun before."""
    rows = len(next(iter(inputs.values())))
    (answer,) = model.run([model.parse(RowRequest(np.arange(rows), inputs))])
    if isinstance(answer, Exception):
        raise answer
    outputs: dict[str, NDArray[Any]] = answer
    return outputs


def case(rows: int, context: int, frames: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Summarize the frames measured at one batch size and context: milliseconds, medians."""
    totals = [sum(stages.values()) for stages in frames]
    return {
        "rows": rows,
        "context": context,
        "frames": len(frames),
        "frame_ms": round(statistics.median(totals), 3),
        "least_ms": round(min(totals), 3),
        "most_ms": round(max(totals), 3),
        "stages_ms": {stage: round(statistics.median(frame[stage] for frame in frames), 3) for stage in STAGES},
    }


@dataclass(frozen=True)
class Group:
    """Consecutive frames: milliseconds by stage, and the memory bandwidth in GB/s right before and after them."""

    frames: Sequence[dict[str, float]]
    gb_per_second: tuple[float, float]


def grouped(rows: int, context: int, groups: Sequence[Group]) -> dict[str, Any]:
    """Summarize all frames, with the frame time of each group."""
    return {
        **case(rows, context, [frame for group in groups for frame in group.frames]),
        "groups": [
            {"frame_ms": case(rows, context, group.frames)["frame_ms"], "gb_per_second": list(group.gb_per_second)}
            for group in groups
        ],
    }


def memory_rate(threads: int) -> float:
    """Measure the memory bandwidth in GB/s: the maximum of one thread and of `threads`."""
    return max(bandwidth(threads).values())


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the arguments of a process that measures frames in groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1500])
    parser.add_argument("--groups", type=int, default=3)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--threads", type=int, default=processors())
    return parser.parse_args()


def main() -> None:
    options = arguments(__doc__)
    frames = Frames(options.models, max(options.rows))
    cases = []
    now = memory_rate(options.threads)
    for rows in options.rows:
        for context in options.contexts:
            groups = []
            for _ in range(options.groups):
                measured = [frames.frame(rows, context) for _ in range(WARM_UP + options.frames)][WARM_UP:]
                before, now = now, memory_rate(options.threads)
                groups.append(Group(measured, (before, now)))
            cases.append(grouped(rows, context, groups))
    print(json.dumps(cases))


if __name__ == "__main__":
    main()
