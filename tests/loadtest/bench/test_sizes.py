"""The sizes that are foretold are those that a build writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from gateway.cli.published import ON_CPU, ON_CUDA
from gateway.manifest import Memory
from loadtest.bench.models.sizes import GPUS, graphs, sizes, slots_on_gpu
from model_repository.build import build_repository
from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import Geometry
from model_repository.serving.memory import MemoryShortageError, check_memory
from model_repository.triton_config import MODELS
from model_repository.variants import CUDA_VARIANTS, VARIANTS, CachePrecision, Variant
from tests.conftest import GOLDEN
from tests.cuda.published import save
from tests.model_repository.serving.host_memory import HostMemory

pytestmark = pytest.mark.long


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_what_a_build_writes(tmp_path: Path, variant):
    build_repository(GOLDEN / "checkpoint", tmp_path / "models", slots=1, variant=variant)
    manifest = json.loads((tmp_path / "models" / "manifest.json").read_text())
    files = manifest["files"]
    foretold = sizes(VARIANTS[variant], Checkpoint.open(GOLDEN / "checkpoint").geometry)
    assert manifest["memory"]["slot"] == foretold.slot
    # What calibration finds is known when it is built.
    assert foretold.loaded <= manifest["memory"]["weights"] <= 1.001 * foretold.loaded
    for model, weights in foretold.weights.items():
        written = files[f"triton/{model}/1/model.onnx.data"]["bytes"]
        graph = onnx.load(str(tmp_path / f"models/triton/{model}/1/model.onnx"), load_external_data=False).graph
        stored = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        # Each weight begins on a page of its own.
        assert weights <= written < weights + 4096 * len(stored)


def test_only_16_bit_matrices_grow_when_they_are_loaded() -> None:
    geometry = Checkpoint.open(GOLDEN / "checkpoint").geometry
    whole, half, eighth = (sizes(VARIANTS[name], geometry) for name in ("fp32", "fp16", "int8"))
    assert whole.loaded == sum(whole.weights.values())
    assert sum(half.weights.values()) < half.loaded < whole.loaded
    heads = 8 * geometry.lm.card * geometry.lm.depformer.dim
    assert eighth.loaded - sum(eighth.weights.values()) == 2 * heads
    lm, codec = geometry.lm.temporal, geometry.mimi.transformer
    caches = 2 * lm.num_layers * lm.window * lm.dim + 2 * 2 * codec.num_layers * codec.window * codec.dim
    assert 4 * caches < whole.slot < 5 * caches
    assert whole.slot - half.slot == 2 * 2 * lm.num_layers * lm.window * lm.dim


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_128_conversations_fit_an_h200_with_int8_keys_and_values(tmp_path: Path, name: str) -> None:
    """Full windows of the published size, by the check that loading makes."""
    geometry, memory = Geometry.from_config({}), HostMemory(GPUS["141 GB"])
    for kv in (CachePrecision.INT8, CachePrecision.BF16):
        recipe = replace(CUDA_VARIANTS[name], cache=kv)
        models = {model: tmp_path / kv / model / "1" / "model.onnx" for model in MODELS}
        for model, graph in graphs(recipe, geometry).items():
            save(graph, models[model].parent)
        most = slots_on_gpu(sizes(recipe, geometry), GPUS["141 GB"])
        assert (most >= 128) is (kv is CachePrecision.INT8)
        check_memory(models["temporal"], most, memory)
        with pytest.raises(MemoryShortageError, match=f"the 4 models together: .*; build with --slots {most}$"):
            check_memory(models["temporal"], most + 1, memory)


@pytest.mark.parametrize(("variants", "known"), [(VARIANTS, ON_CPU), (CUDA_VARIANTS, ON_CUDA)])
def test_doctor_knows_the_sizes_of_the_published_model(variants: dict[str, Variant], known: dict[str, Memory]) -> None:
    assert set(known) == set(variants)
    for name, variant in variants.items():
        found = sizes(variant, Geometry.from_config({}))
        assert known[name] == Memory(weights=found.loaded, slot=found.slot), name
