"""What the gateway and Triton add to the four graphs, for one caller: `make bench-overhead`.

Two conversations take turns, each with a frame every 80 ms, half a frame apart, so that whatever else the machine
does hits both alike. One is a live gRPC call to the service, timed at the caller: from handing over a frame to having
its answer. The other runs the same four graphs in this process, one after the other, in the same sessions the served
models use, and counts the time inside ONNX Runtime alone. Medians of several rounds; the ratio is the figure.

Beside them stands what nothing of ours can go below while a frame is four calls of Python models: the same Triton with
four models that give back what they are given, called one after the other every 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.engine.triton.http import TritonHttp
from gateway.engine.triton.request import Tensor, head
from gateway.triton_server.server import TritonServer
from loadtest.faces.grpc import PATH
from loadtest.http2 import GrpcCall
from loadtest.server import build_tiny, started
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.mimi import MimiModel
from model_repository.serving.temporal import TemporalModel
from model_repository.serving.turns import Model, Turn
from tests.benchmarks.bandwidth import ROOT

FRAME_SECONDS = 0.08
DEADLINE = 10.0
"""Seconds for an answer."""

ECHO = ROOT / "tests" / "gateway" / "triton" / "models" / "echo"
ECHOES = ("echo0", "echo1", "echo2", "echo3")


class Stopwatch:
    """Seconds inside ONNX Runtime since the last `lap`."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def lap(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every session's runs are counted inside."""
        with mock.patch.multiple(
            ort.InferenceSession,
            run=self._timed(ort.InferenceSession.run),
            run_with_iobinding=self._timed(ort.InferenceSession.run_with_iobinding),
        ):
            yield

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._seconds += time.perf_counter() - began

        return timed


class Graphs:
    """One conversation through the four graphs, in this process."""

    def __init__(self, models: Path) -> None:
        manifest = json.loads((models / "manifest.json").read_text())

        def graph(name: str) -> Path:
            return models / "triton" / name / "1" / "model.onnx"

        self._encoder = MimiModel(graph("mimi_encoder"), 1)
        self._temporal = TemporalModel(
            graph("temporal"), 1, manifest["text_card"], manifest["card"], manifest["context"] - 1
        )
        self._depformer = DepformerModel(graph("depformer"), manifest["text_card"], manifest["card"])
        self._decoder = MimiModel(graph("mimi_decoder"), 1, manifest["card"])
        self._sampling = manifest["sampling"]
        self._column = np.zeros((1, 17), np.int64)
        self._frames = 0

    def frame(self, pcm: NDArray[np.float32]) -> None:
        """80 ms in, 80 ms out; the tokens of a column are those of the frame before, which costs the same."""
        heard = self._run(self._encoder, pcm=pcm)["codes"]
        self._column[0, 9:] = heard
        thought = self._run(self._temporal, columns=self._column, **self._draw("text"))
        codes = self._run(self._depformer, **thought, **self._draw("audio"))["codes"]
        self._column[0, 0], self._column[0, 1:9] = thought["text_token"][0], codes
        self._run(self._decoder, codes=codes)
        self._frames += 1

    def _draw(self, kind: str) -> dict[str, NDArray[Any]]:
        return {
            "sampler": np.array([1, self._frames, self._sampling[f"{kind}_top_k"]], np.int64),
            "temperature": np.array([self._sampling[f"{kind}_temperature"]], np.float32),
        }

    def _run(self, model: Model, **inputs: NDArray[Any]) -> Any:
        outcome = model.run([Turn(0, self._frames == 0, inputs)])
        for error in outcome.errors.values():
            raise error
        return outcome.outputs[0]


class ConversationLease:
    """A live call that is timed from the caller's side, with a client that takes little time itself."""

    def __init__(self) -> None:
        self._came = asyncio.Event()

    async def begin(self, target: str) -> None:
        self._call = await GrpcCall.open(target, PATH, [], self._message)
        await self._say(pb.ConverseRequest(start=pb.Start(sampling=pb.Sampling(seed=1))))

    async def frame(self, pcm: bytes) -> float:
        """Seconds from the frame being handed over to its answer being there."""
        message = pb.ConverseRequest(audio=pcm)
        began = time.perf_counter()
        await self._say(message)
        return time.perf_counter() - began

    async def end(self) -> None:
        await self._call.send(pb.ConverseRequest(end=pb.End()).SerializeToString())
        self._call.half_close()
        await self._call.ended

    async def _say(self, message: pb.ConverseRequest) -> None:
        self._came.clear()
        await self._call.send(message.SerializeToString())
        waiting = asyncio.ensure_future(self._came.wait())
        await asyncio.wait([waiting, self._call.ended], return_when=asyncio.FIRST_COMPLETED)
        if self._call.ended.done():
            raise RuntimeError(f"the call ended: {self._call.ended.result()}")

    def _message(self, message: bytes) -> None:
        if pb.ConverseResponse.FromString(message).WhichOneof("message") == "audio":
            self._came.set()


class Echoes:
    """Four Python models that do nothing, on a Triton of their own."""

    def __init__(self, url: str) -> None:
        self._http = TritonHttp(url.removeprefix("http://"))
        self._content = np.zeros(2, np.float32).tobytes()
        self._heads = [head(name, [Tensor("x", "FP32", (2,))]) for name in ECHOES]

    async def frame(self) -> float:
        """Seconds for one call of each."""
        began = time.perf_counter()
        for request in self._heads:
            await self._http.infer([request, self._content], DEADLINE)
        return time.perf_counter() - began

    async def end(self) -> None:
        await self._http.close()

    @staticmethod
    def write(repository: Path) -> Path:
        """What their Triton is pointed at."""
        for name in ECHOES:
            shutil.copytree(ECHO, repository / name, dirs_exist_ok=True)
            config = repository / name / "config.pbtxt"
            config.write_text(config.read_text().replace('name: "echo"', f'name: "{name}"'))
        return repository


async def _ticks(count: int, seconds: float) -> AsyncIterator[None]:
    due = time.perf_counter()
    for _ in range(count):
        due = max(due, time.perf_counter() - seconds)
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        yield
        due += seconds


async def measure(models: Path, target: str, echoing: str, rounds: int, frames: int) -> dict[str, Any]:
    """Milliseconds per frame, one list per round."""
    random = np.random.default_rng(0)
    graphs, stopwatch = Graphs(models), Stopwatch()
    alone: list[list[float]] = []
    served: list[list[float]] = []
    nothing: list[list[float]] = []
    echoes = Echoes(echoing)
    call = ConversationLease()
    await call.begin(target)
    with stopwatch.watching():
        for _ in range(rounds):
            alone.append([])
            served.append([])
            async for _ in _ticks(frames, FRAME_SECONDS):
                pcm = (random.standard_normal(1920) * 0.05).astype(np.float32)
                served[-1].append(1e3 * await call.frame((pcm * 32767).astype("<i2").tobytes()))
                await asyncio.sleep(FRAME_SECONDS / 2)
                graphs.frame(pcm)
                alone[-1].append(1e3 * stopwatch.lap())
            nothing.append([1e3 * await echoes.frame() async for _ in _ticks(frames // 3, FRAME_SECONDS)])
    await call.end()
    await echoes.end()
    # The first round warms up.
    return {"graphs": alone[1:], "served": served[1:], "nothing": nothing[1:]}


TITLES = {
    "graphs": "the four graphs alone",
    "served": "live gRPC call, seen by the caller",
    "nothing": "four models that do nothing, in Triton",
}


def _print(stats: dict[str, Any]) -> None:
    table = Table("ms per frame, one caller", "median", "least round", "most round", "p99")
    for name, title in TITLES.items():
        rounds = stats["rounds"][name]
        medians = [float(np.median(times)) for times in rounds]
        p99 = float(np.percentile(np.concatenate(rounds), 99))
        table.add_row(title, *(f"{value:.2f}" for value in (stats[name], min(medians), max(medians), p99)))
    console = Console()
    console.print(table)
    console.print(f"added by gateway and Triton: {stats['added']:.2f} ms; ratio {stats['ratio']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a built repository; tiny models by default")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--frames", type=int, default=75, help="frames of a round (default 75, which are 6 s)")
    parser.add_argument("--out", type=Path, default=Path("build/overhead"), help="folder for models, log and JSON")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    models = asked.models or build_tiny(asked.out, slots=2)
    with (
        started(models, asked.out / "server.log") as server,
        TritonServer(Echoes.write(asked.out / "echoes")) as echoing,
    ):
        rounds = asyncio.run(measure(models, server.grpc, echoing.http_url, asked.rounds + 1, asked.frames))
    medians = {name: float(np.median(np.concatenate(times))) for name, times in rounds.items()}
    stats: dict[str, Any] = {
        **medians,
        "added": medians["served"] - medians["graphs"],
        "ratio": medians["served"] / medians["graphs"],
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}",
        "onnxruntime": ort.__version__,
        "rounds": rounds,
    }
    (asked.out / "overhead.json").write_text(json.dumps(stats, indent=1) + "\n")
    _print(stats)


if __name__ == "__main__":
    main()
