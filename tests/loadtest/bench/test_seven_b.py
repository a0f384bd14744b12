"""The whole benchmark, on a tiny model: every step is done, and every figure is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from loadtest.bench.models.bytes_read import STAGES, reads_of
from loadtest.bench.models.fewer_slots import with_slots
from loadtest.bench.models.operators import operators
from loadtest.paths import ROOT
from model_repository.build import build_repository
from model_repository.checkpoint.folder import Checkpoint

pytestmark = pytest.mark.long


def _bench(work: Path, *options: str) -> str:
    command = [sys.executable, "-m", "loadtest.bench.models.seven_b", "--tiny", "--work", str(work), *options]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    few = ("--rows", "1", "2", "--contexts", "20", "511", "--served-rows", "1", "2", "--served-contexts", "50")
    printed = _bench(folder, *few, "--served-groups", "2", "--frames", "3", "--slots", "3")
    assert "Bounds" in printed
    return folder


@pytest.fixture(scope="module")
def stats(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "tiny.json").read_text())
    return found


def test_every_case_is_measured_beside_the_bandwidth(stats: dict[str, Any]) -> None:
    assert [(case["rows"], case["context"]) for case in stats["alone"]] == [(1, 20), (1, 511), (2, 20), (2, 511)]
    assert [(case["rows"], case["context"]) for case in stats["served"]["cases"]] == [(1, 50), (2, 50)]
    for case in (*stats["alone"], *stats["served"]["cases"]):
        assert all(case["stages_ms"][stage] > 0 for stage in STAGES)
        assert case["least_ms"] <= case["frame_ms"] <= case["most_ms"]
        assert all(rate > 0 for group in case["groups"] for rate in group["gb_per_second"])
    assert [len(case["groups"]) for case in stats["served"]["cases"]] == [2, 2]


def test_only_the_first_of_the_conversations_computes_their_columns(stats: dict[str, Any]) -> None:
    assert [begun["computed"] for begun in stats["served"]["begun"]] == [50, 1, 1, 1, 1, 1]


def test_the_build_and_the_server_of_two_slots_say_what_memory_they_took(work: Path, stats: dict[str, Any]) -> None:
    assert stats["build"]["peak_bytes"] > 50e6
    assert stats["memory"]["slots"] == 2
    held = stats["memory"]["memory"]
    assert {"tritonserver", *STAGES.values()} <= held["processes"].keys()
    for counted in (held, *held["processes"].values()):
        assert 0 < counted["anonymous"] < counted["pss"] <= counted["rss"]
    assert [begun["computed"] for begun in stats["memory"]["begun"]] == [511, 511]
    assert stats["memory"]["remembered_at_most"] == 511 * 2 * 2 * 64
    assert not (work / "models-2-slots").exists()


def test_the_report_has_every_table(work: Path) -> None:
    titles = [line for line in (work / "tiny.md").read_text().splitlines() if line.startswith("## ")]
    assert len(titles) == 9
    assert titles[-1] == "## Bounds"


def test_a_single_step_can_be_repeated_without_building_again(work: Path) -> None:
    built = (work / "models" / "manifest.json").stat().st_mtime_ns
    alone = json.loads((work / "alone.json").read_text())
    printed = _bench(
        work, "--only", "build", "alone", "--rows", "1", "--contexts", "30", "--frames", "1", "--slots", "3"
    )
    assert "Frames through Triton" in printed
    assert (work / "models" / "manifest.json").stat().st_mtime_ns == built
    again = json.loads((work / "alone.json").read_text())
    assert len(again) == 1 < len(alone)


def test_a_checkpoint_alone_has_no_figures(tmp_path: Path) -> None:
    assert "Bounds" not in _bench(tmp_path, "--only", "checkpoint")
    assert {entry.name for entry in tmp_path.iterdir()} == {"checkpoint", "checkpoint.json"}


def test_a_step_that_fails_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _bench(tmp_path, "--only", "checkpoint", "build", "--variant", "int3")
    assert "unknown variant 'int3'" in (error := capfd.readouterr().err)
    assert "build failed with status 2" in error


def test_a_frame_reads_each_weight_but_the_tables_that_are_looked_up(work: Path, tmp_path: Path) -> None:
    lm = Checkpoint.open(work / "checkpoint").lm
    read = [name for name in lm.names() if name.startswith(("transformer.", "text_linear.", "out_norm."))]
    elements = sum(int(np.prod(lm.shape(name))) for name in read)
    build_repository(work / "checkpoint", tmp_path / "models", slots=1, variant="fp32")
    whole = reads_of(tmp_path / "models")["temporal"]
    assert whole.weights == pytest.approx(4 * elements, rel=0.02)
    assert (whole.window, whole.column, whole.filled) == (511, 2 * 2 * 64 * 4, True)
    assert reads_of(work / "models")["temporal"].column == 2 * 2 * 64


def test_of_a_products_scales_a_frame_reads_two_bytes(work: Path) -> None:
    graph = onnx.load(work / "models" / "triton" / "temporal" / "1" / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    scales = sum(sizes[node.input[2]] for node in products)
    codes = sum(sizes[name] for node in products for name in (node.input[1], *node.input[3:]))
    others = sum(size for name, size in sizes.items() if name.endswith("norm.alpha"))
    read = reads_of(work / "models")["temporal"].weights
    assert len(products) == 9
    assert read == pytest.approx(codes + 2 * scales + 4 * others, abs=2048)
    assert 4 * scales > 3 * 2048, "scales are seen at all"


def test_fewer_slots_share_the_large_files(work: Path, tmp_path: Path) -> None:
    weights = work / "models" / "triton" / "depformer" / "1" / "model.onnx.data"
    with_slots(work / "models", tmp_path / "few", 1)
    assert (tmp_path / "few" / weights.relative_to(work / "models")).samefile(weights)
    for file in (tmp_path / "few").glob("triton/*/config.pbtxt"):
        assert text_format.Parse(file.read_text(), pb.ModelConfig()).max_batch_size == 1
    assert json.loads((tmp_path / "few" / "manifest.json").read_text())["slots"] == 1
    assert json.loads((work / "models" / "manifest.json").read_text())["slots"] == 3


def test_operators_are_timed_by_stage(work: Path) -> None:
    found = operators(work / "models", rows=1, context=20, count=2)
    assert found.keys() == STAGES.keys()
    assert found["temporal"]["GroupQueryAttention"]["nodes"] == 2
    assert all(total["ms"] >= 0 for stage in found.values() for total in stage.values())
