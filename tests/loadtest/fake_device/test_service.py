"""The service on a fake device: the real Triton, the real protocol, and a configured time."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from gateway.engine.prefill import ChunkPacer, chunk_length
from loadtest.fake_device.build import signatures, write_fake_repository
from loadtest.fake_device.profiles import PROFILES, WINDOW, Profile
from loadtest.fake_device.timed_session import TimedSession, Timing
from loadtest.paths import RECORDING, ROOT
from loadtest.server import Server, started
from model_repository.checkpoint.geometry import Geometry
from model_repository.synthetic.tiny import TINY_CONFIG

FRAMES = 20
TIMINGS = {
    "mimi_encoder": Timing(0.001, 0.0001),
    "temporal": Timing(0.004, 0.0005, 1e-7),
    "depformer": Timing(0.002, 0.0),
    "mimi_decoder": Timing(0.001, 0.0001),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fake")
    models = write_fake_repository(folder / "models", TIMINGS, 4, geometry=Geometry.from_config(TINY_CONFIG))
    with started(models, folder / "server.log") as server:
        yield server


def _respond(server: Server, seed: int) -> bytes:
    body = {"audio": base64.b64encode(RECORDING.read_bytes()).decode(), "max_steps": FRAMES, "seed": seed}
    answer = httpx.post(
        f"{server.url}/v1/respond", json=body, headers={"accept": "audio/wav"}, timeout=60, trust_env=False
    )
    assert answer.status_code == 200, answer.text
    return answer.content


def test_answers_are_those_of_the_conversation_whoever_shares_the_batch(server: Server) -> None:
    alone = [_respond(server, seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda seed: _respond(server, seed), range(4))) == alone


@pytest.mark.long
@pytest.mark.alone
def test_a_live_load_runs_on_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest", "--fake-device", "h200", "--users", "2", "--seconds", "2"]
    done = subprocess.run(
        [*command, "--drain", "20", "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    # 1 on a machine that is too slow for 80 ms.
    assert done.returncode in (0, 1), done.stderr
    (file,) = tmp_path.glob("*/result.json")
    stats = json.loads(file.read_text())["stats"]["grpc"]
    assert (stats["completed"], stats["missing"]) == (2, 0)
    # Of two full windows, by the profile.
    assert stats["latency"]["p50"] > 1000 * _frame_seconds(Profile.H200, rows=2)


@pytest.mark.parametrize(("rows", "milliseconds"), [(1, (11, 12.5)), (32, (25, 29)), (64, (39, 44))])
def test_the_profile_of_an_h200_goes_through_its_estimates(rows: int, milliseconds: tuple[float, float]) -> None:
    least, most = milliseconds
    assert least < 1000 * _frame_seconds(Profile.H200, rows) < most


def test_a_new_persona_delays_no_frame_of_40_full_windows_beyond_its_80_ms() -> None:
    """By the estimates: a frame that waits for the longest chunk of a prompt of 250 positions, and then runs."""
    temporal = replace(PROFILES[Profile.H200]["temporal"], window=WINDOW)
    pacer, done, total, chunks = ChunkPacer(0.08, clock=lambda: 0.0), 0, 250, []
    while done < total:
        steps = chunk_length(done, total, pacer.steps(others_talk=True), WINDOW)
        runs = -(-steps // TimedSession.chunk)
        seconds = runs * temporal.seconds(np.array([done + steps + TimedSession.chunk]))
        pacer.measured(steps, seconds)
        chunks.append(seconds)
        done += steps
    assert len(chunks) < 8
    assert max(chunks) < 0.008, "a tenth of a frame: one run of the device"
    assert _frame_seconds(Profile.H200, rows=40) + max(chunks) < 0.08
    one_by_one = temporal.seconds(np.array([WINDOW] * 40)) * total
    assert one_by_one > 5, "seconds of the device, when each position was a step of all rows"


def _frame_seconds(profile: Profile, rows: int) -> float:
    timings = PROFILES[profile].values()
    return sum(timing.run + rows * (timing.row + WINDOW * timing.position) for timing in timings)


def test_configs_are_those_of_a_real_build_but_for_the_device(tiny_models: Path, tmp_path: Path) -> None:
    real_slots = json.loads((tiny_models / "manifest.json").read_text())["slots"]
    fake = write_fake_repository(tmp_path / "m", TIMINGS, real_slots, geometry=Geometry.from_config(TINY_CONFIG))
    for file in tiny_models.glob("triton/*/config.pbtxt"):
        real, written = (text_format.Parse(path.read_text(), pb.ModelConfig()) for path in (file, _same(file, fake)))
        for config in (real, written):
            # A GPU samples text from fewer candidates.
            for name in [name for name in config.parameters if name == "max_text_top_k" or name.startswith("timing.")]:
                del config.parameters[name]
        assert written == real


def _same(file: Path, models: Path) -> Path:
    return models / "triton" / file.parent.name / file.name


def test_signatures_are_those_of_the_graphs_for_a_gpu(cuda_models: Path) -> None:
    manifest = json.loads((cuda_models / "manifest.json").read_text())
    geometry = Geometry.from_config(TINY_CONFIG)
    for name, signature in signatures(geometry, 512).items():
        graph = onnx.load(str(cuda_models / "triton" / name / "1" / "model.onnx"), load_external_data=False).graph
        # Offsets are the same for all rows, so a session has them by itself.
        inputs = {node.name for node in graph.input if not node.name.startswith(("state.", "cache.", "offsets"))}
        assert inputs == set(signature["inputs"])
        for node in graph.input:
            if node.name in inputs:
                shape = [size.dim_value or 1 for size in node.type.tensor_type.shape.dim][1:]
                expected = signature["inputs"][node.name][1]
                # The models of this fixture are narrower; all other sizes are the same.
                assert shape == [manifest["dim"] if size == geometry.lm.temporal.dim else size for size in expected]
