"""Names and shapes of the two weight files follow from the geometry."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import check_tensors, is_required, lm_shapes, mimi_shapes, with_current_names
from model_repository.checkpoint.weights.tensors import Shape, Tensor, TensorSource
from model_repository.errors import CheckpointError

PUBLISHED = Geometry.from_config({})


def source_of(shapes: dict[str, Shape]) -> TensorSource:
    """Tensors of these shapes, each of the length of its name."""

    def tensor(name: str, shape: Shape) -> Tensor:
        return Tensor(shape, lambda rows: np.full(shape, len(name), np.float32))

    return TensorSource(Path("f"), {name: tensor(name, shape) for name, shape in shapes.items()})


def published(file: str) -> dict[str, Shape]:
    lines = (Path(__file__).parent / file).read_text().splitlines()
    return {name: tuple(json.loads(shape)) for name, shape in (line.split("\t") for line in lines)}


def test_the_published_language_model() -> None:
    assert lm_shapes(PUBLISHED.lm) == published("published_lm_keys.txt")


def test_the_published_codec() -> None:
    assert mimi_shapes(PUBLISHED.mimi) == published("published_mimi_keys.txt")


def test_a_checkpoint_of_another_size(golden_checkpoint: Checkpoint) -> None:
    lm, mimi, geometry = golden_checkpoint.lm, golden_checkpoint.mimi, golden_checkpoint.geometry
    assert lm_shapes(geometry.lm) == {name: lm.shape(name) for name in lm.names()}
    assert mimi_shapes(geometry.mimi) == {name: mimi.shape(name) for name in mimi.names()}


def test_what_the_agent_does_not_need_may_be_absent() -> None:
    shapes = lm_shapes(PUBLISHED.lm)
    needed = {name: shape for name, shape in shapes.items() if is_required(name)}
    absent = set(shapes) - set(needed)
    assert {name for name in absent if name.startswith("depformer_emb")} == {
        f"depformer_emb.{table}.weight" for table in range(7, 15)
    }
    assert {name for name in absent if name.startswith("linears")} == {
        f"linears.{step}.weight" for step in range(8, 16)
    }
    assert "depformer.layers.5.gating.8.linear_in.weight" in absent
    assert "depformer.layers.5.gating.7.linear_in.weight" in needed
    assert len(absent) == 8 * (1 + 1 + 1 + 2 * 6)
    check_tensors("f", source_of(needed), shapes)


def test_the_unused_codebooks_and_the_training_flags_may_be_absent() -> None:
    shapes = mimi_shapes(PUBLISHED.mimi)
    needed = {name: shape for name, shape in shapes.items() if is_required(name)}
    assert len(shapes) - len(needed) == 32 + 24 * 2
    assert "quantizer.rvq_rest.vq.layers.6._codebook.embedding_sum" in needed
    check_tensors("f", source_of(needed), shapes)


def test_eight_depth_steps_are_enough_if_the_config_says_so() -> None:
    geometry = Geometry.from_config({"lm": {"dep_q": 8}})
    shapes = lm_shapes(geometry.lm)
    assert shapes["depformer.layers.0.self_attn.in_proj_weight"] == (8 * 3 * 1024, 1024)
    assert "depformer_emb.7.weight" not in shapes
    check_tensors("f", source_of(shapes), shapes)


@pytest.mark.parametrize(
    "name", ["text_linear.weight", "linears.7.weight", "transformer.layers.31.norm2.alpha", "depformer_emb.6.weight"]
)
def test_a_missing_tensor_is_named(name: str) -> None:
    shapes = lm_shapes(PUBLISHED.lm)
    found = {other: shape for other, shape in shapes.items() if other != name}
    with pytest.raises(CheckpointError, match=f"model.safetensors: missing tensor '{name}' .expected shape"):
        check_tensors("model.safetensors", source_of(found), shapes)


@pytest.mark.parametrize("name", ["emb.3.weight", "linears.15.weight"])
def test_a_wrong_shape_says_what_was_expected_and_what_came(name: str) -> None:
    shapes = lm_shapes(PUBLISHED.lm)
    with pytest.raises(CheckpointError, match=rf"wrong shape of tensor '{name}': expected \[204[89], \d+\], got \[3\]"):
        check_tensors("model.safetensors", source_of(shapes | {name: (3,)}), shapes)


def test_layers_the_geometry_does_not_have_are_unexpected() -> None:
    smaller = Geometry.from_config({"lm": {"num_layers": 24}})
    with pytest.raises(CheckpointError, match=r"unexpected tensor 'transformer.layers.24\..*no layer 24"):
        check_tensors("f", source_of(lm_shapes(PUBLISHED.lm)), lm_shapes(smaller.lm))


@pytest.mark.parametrize("legacy_sum", ["embed_avg", "embed_sum"])
def test_legacy_names_of_codebook_buffers_are_understood(legacy_sum: str) -> None:
    shapes = mimi_shapes(PUBLISHED.mimi)
    legacy = {"_initialized": "inited", "cluster_usage": "cluster_size", "embedding_sum": legacy_sum}
    stored = {}
    for name, shape in shapes.items():
        prefix, dot, last = name.rpartition(".")
        stored[prefix + dot + legacy.get(last, last)] = shape
    tensors = with_current_names(source_of(stored))
    assert set(tensors.names()) == set(shapes)
    check_tensors("f", tensors, shapes)
    first = "quantizer.rvq_first.vq.layers.0._codebook."
    assert tensors.read(first + "embedding_sum").max() == len(first + legacy_sum)
