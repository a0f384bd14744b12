"""The GPU benchmark on a machine without one: it reports that, and its measuring functions work on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.bench.models import gpu
from tests.model_repository.serving.host_memory import HostMemory

pytestmark = pytest.mark.long


def test_a_missing_gpu_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--work", str(tmp_path)]) == gpu.NO_GPU
    assert capsys.readouterr().out.startswith("no usable GPU: expected onnxruntime with CUDA, found one with")
    assert not list(tmp_path.iterdir())


def test_placements_count_nodes_by_provider(cuda_models: Path):
    ran = gpu.placements(gpu.graph(cuda_models, "temporal"), HostMemory())
    assert set(ran) == {"CPU"}
    assert ran["CPU"] > 50


def test_agreement_is_near_one_for_the_same_model(cuda_models: Path, golden_models: Path, tiny_models: Path):
    cosine, equal = gpu.agreement(cuda_models, golden_models, HostMemory(), steps=70)
    assert cosine > 0.9999
    assert equal > 0.9


def test_frames_are_measured_for_every_number_of_rows(cuda_models: Path):
    cases = gpu.measure_frames(cuda_models, HostMemory(), [1, 3], [20, 55], frames=2)
    assert [(case["rows"], case["context"]) for case in cases] == [(1, 20), (1, 55), (3, 20), (3, 55)]
    assert all(case["chunk_ms"] > 0 for case in cases)
    assert all(list(case["stages_ms"]) == ["encode", "temporal", "depformer", "decode"] for case in cases)
