"""Measure what the gateway and Triton add to the four graphs, for one live user: `make bench-overhead`.

Two conversations alternate. Each sends one frame every 80 ms, half a frame apart, so that other load on the machine
affects both. The first is a live gRPC conversation with the service; its time is measured at the client, from sending
a frame to receiving the answer. The second runs the same four graphs in this process, one after the other, with the
sessions the served models use; only time inside ONNX Runtime counts. The figure is the difference of the medians.

The lower bound for a frame of four calls to Python models is measured too: the same Triton with four models that return
their input, called one after the other every 80 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.table import Table

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.cli.console import result_console
from gateway.manifest import Manifest
from gateway.triton_server import TritonServer
from loadtest.apis.grpc import PATH
from loadtest.http2 import GrpcCall
from loadtest.machine import machine
from loadtest.server import build_random, started
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import run_one
from model_repository.serving.temporal import TemporalModel

FRAME_SECONDS = 0.08
RESPONSE_TIMEOUT_S = 10.0

_ECHO = Path(__file__).with_name("echo")
_ECHOES = ("echo0", "echo1", "echo2", "echo3")


class Stopwatch:
    """Seconds inside ONNX Runtime since the last `lap`."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def lap(self) -> float:
        """Return the seconds so far and restart at 0."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the runs of every session while entered."""
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
    """One conversation through the four graphs, in this process. Raises RepositoryError for models of other builds."""

    def __init__(self, models: Path) -> None:
        manifest = Manifest.load(models)

        def graph(name: str) -> Path:
            return models / "triton" / name / "1" / "model.onnx"

        self._encoder = MimiModel(graph("mimi_encoder"), 1)
        self._temporal = TemporalModel(graph("temporal"), 1, manifest.text_card, manifest.card, manifest.context - 1)
        self._depformer = DepformerModel(graph("depformer"), manifest.text_card, manifest.card)
        self._decoder = MimiModel(graph("mimi_decoder"), 1, manifest.card)
        self._sampling = manifest.sampling.model_dump()
        self._columns = np.zeros((1, 17), np.int64)
        self._frames = 0
        for model in (self._encoder, self._temporal, self._decoder):
            model.slots.begin(0)

    def frame(self, pcm: NDArray[np.float32]) -> None:
        """Process 80 ms: `pcm` [1920] float32. The tokens of a step are the previous frame's, which costs the same."""
        codes = self._run(self._encoder, pcm=pcm)["codes"]
        self._columns[0, 9:] = codes
        temporal = self._run(self._temporal, columns=self._columns, **self._sampler("text"))
        agent = self._run(self._depformer, **temporal, **self._sampler("audio"))["codes"]
        self._columns[0, 0], self._columns[0, 1:9] = temporal["text_token"][0], agent
        self._run(self._decoder, codes=agent)
        self._frames += 1

    def _sampler(self, kind: str) -> dict[str, NDArray[Any]]:
        return {
            "sampler": np.array([1, self._frames, self._sampling[f"{kind}_top_k"]], np.int64),
            "temperature": np.array([self._sampling[f"{kind}_temperature"]], np.float32),
        }

    def _run(self, model: Any, **inputs: NDArray[Any]) -> Any:
        return run_one(model, 0, inputs)


class TimedConversation:
    """A live gRPC conversation that measures its own frame latency, with a client that uses little CPU."""

    def __init__(self) -> None:
        self._answered = asyncio.Event()

    async def open(self, target: str) -> None:
        """Start the conversation and wait for agent frame 0. Raises RuntimeError if the server ends it."""
        self._call = await GrpcCall.open(f"http://{target}", PATH, [], self._on_message)
        await self._exchange(pb.ConverseRequest(start=pb.Start(sampling=pb.Sampling(seed=1))))

    async def frame(self, pcm: bytes) -> float:
        """Send one frame (s16le) and return the seconds until its answer has been received."""
        message = pb.ConverseRequest(audio=pcm)
        began = time.perf_counter()
        await self._exchange(message)
        return time.perf_counter() - began

    async def close(self) -> None:
        """End the conversation regularly."""
        await self._call.send(pb.ConverseRequest(end=pb.End()).SerializeToString())
        self._call.half_close()
        await self._call.ended

    async def _exchange(self, message: pb.ConverseRequest) -> None:
        self._answered.clear()
        await self._call.send(message.SerializeToString())
        answered: asyncio.Future[Any] = asyncio.ensure_future(self._answered.wait())
        ended: asyncio.Future[Any] = self._call.ended
        await asyncio.wait([answered, ended], return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise RuntimeError(f"the server ended the conversation: {ended.result()}")

    def _on_message(self, message: bytes) -> None:
        if pb.ConverseResponse.FromString(message).WhichOneof("message") == "audio":
            self._answered.set()


class EchoModels:
    """Client of a Triton with four Python models that return their input. Blocking calls on one connection."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=RESPONSE_TIMEOUT_S)
        content = np.zeros(2, np.float32).tobytes()
        tensor = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": len(content)}}
        header = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [tensor]}).encode()
        self._body = header + content
        self._headers = {"Inference-Header-Content-Length": str(len(header))}

    def frame(self) -> float:
        """Call each model once; return the seconds. Raises RuntimeError if Triton rejects a request."""
        began = time.perf_counter()
        for name in _ECHOES:
            self._connection.request("POST", f"/v2/models/{name}/infer", self._body, self._headers)
            response = self._connection.getresponse()
            content = response.read()
            if response.status != http.client.OK:
                raise RuntimeError(f"{name}: status {response.status}: {content[:200]!r}")
        return time.perf_counter() - began

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @staticmethod
    def write(repository: Path) -> Path:
        """Write the four models to the folder `repository` and return it."""
        for name in _ECHOES:
            shutil.copytree(_ECHO, repository / name, dirs_exist_ok=True)
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


async def measure(
    models: Path, target: str, rounds: int, frames: int, echoes: EchoModels | None = None
) -> dict[str, list[list[float]]]:
    """Milliseconds per frame, one list per round: of the `graphs`, the `service` and, if given, the `echoes`.

    `target`: HOST:PORT of the service's gRPC API. One more round runs first, as a warm-up, and is not returned.
    """
    random = np.random.default_rng(0)
    graphs, stopwatch, conversation = Graphs(models), Stopwatch(), TimedConversation()
    times: dict[str, list[list[float]]] = {"graphs": [], "service": []}
    if echoes:
        times["echoes"] = []
    await conversation.open(target)
    with stopwatch.running():
        for _ in range(rounds + 1):
            for measured in times.values():
                measured.append([])
            async for _ in _ticks(frames, FRAME_SECONDS):
                pcm = (random.standard_normal(1920) * 0.05).astype(np.float32)
                times["service"][-1].append(1e3 * await conversation.frame((pcm * 32767).astype("<i2").tobytes()))
                await asyncio.sleep(FRAME_SECONDS / 2)
                graphs.frame(pcm)
                times["graphs"][-1].append(1e3 * stopwatch.lap())
            if echoes:
                times["echoes"][-1] += [1e3 * echoes.frame() async for _ in _ticks(frames // 3, FRAME_SECONDS)]
    await conversation.close()
    return {name: measured[1:] for name, measured in times.items()}


def summary(rounds: Mapping[str, list[list[float]]]) -> dict[str, float]:
    """Medians of all frames in ms; `added` by gateway and Triton in ms; `ratio` of service to graphs."""
    medians = {name: float(np.median(np.concatenate(times))) for name, times in rounds.items()}
    added = medians["service"] - medians["graphs"]
    return {**medians, "added": added, "ratio": medians["service"] / medians["graphs"]}


TITLES = {
    "graphs": "the four graphs in one process",
    "service": "live gRPC frame, measured at the client",
    "echoes": "four echo models in Triton",
}


def _print(stats: dict[str, Any]) -> None:
    table = Table("ms per frame, one user", "median", "lowest round", "highest round", "p99")
    for name, title in TITLES.items():
        rounds = stats["rounds"][name]
        medians = [float(np.median(times)) for times in rounds]
        p99 = float(np.percentile(np.concatenate(rounds), 99))
        table.add_row(title, *(f"{value:.2f}" for value in (stats[name], min(medians), max(medians), p99)))
    console = result_console()
    console.print(table)
    console.print(f"added by gateway and Triton: {stats['added']:.2f} ms; ratio {stats['ratio']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a built repository; tiny models by default")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--frames", type=int, default=75, help="frames per round (default 75, which are 6 s)")
    parser.add_argument("--out", type=Path, default=Path("build/overhead"), help="folder for models, log and JSON")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    models = options.models or build_random(options.out, slots=2)
    with (
        started(models, options.out / "server.log") as server,
        TritonServer(EchoModels.write(options.out / "echoes")) as triton,
    ):
        echoes = EchoModels(triton.http_url)
        rounds = asyncio.run(measure(models, server.grpc, options.rounds, options.frames, echoes))
        echoes.close()
    stats = {**summary(rounds), "machine": machine(), "rounds": rounds}
    (options.out / "overhead.json").write_text(json.dumps(stats, indent=1) + "\n")
    _print(stats)


if __name__ == "__main__":
    main()
