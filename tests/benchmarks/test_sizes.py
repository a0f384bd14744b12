"""The sizes that are foretold are those that a build writes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from model_repository.build import build_repository
from model_repository.checkpoint.folder import Checkpoint
from model_repository.variants import VARIANTS
from tests.benchmarks.sizes import sizes
from tests.conftest import GOLDEN


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_what_a_build_writes(tmp_path: Path, variant):
    build_repository(GOLDEN / "checkpoint", tmp_path / "models", slots=1, variant=variant)
    files = json.loads((tmp_path / "models" / "manifest.json").read_text())["files"]
    foretold = sizes(VARIANTS[variant], Checkpoint.open(GOLDEN / "checkpoint").geometry)
    for model, weights in foretold.weights.items():
        written = files[f"triton/{model}/1/model.onnx.data"]["bytes"]
        graph = onnx.load(str(tmp_path / f"models/triton/{model}/1/model.onnx"), load_external_data=False).graph
        stored = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        # Each weight begins on a page of its own.
        assert weights <= written < weights + 4096 * len(stored)
