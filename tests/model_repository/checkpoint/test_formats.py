"""A checkpoint is the same model in every format, within the format's rounding: its tensors, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from model_repository.build import build_repository
from model_repository.checkpoint.folder import LM_FILE, MLX_MIMI_FILE, Checkpoint
from model_repository.checkpoint.layout import is_required
from model_repository.errors import CheckpointError
from model_repository.synthetic.tiny import write_tiny_checkpoint
from tests.model_repository.checkpoint.kquants import quantize
from tests.model_repository.checkpoint.writers import (
    beside_the_weights,
    cut,
    gguf_metadata,
    published_kinds,
    write_gguf,
    write_mlx,
)
from tests.model_repository.serving.conftest import Models, one, sampler

WIDE: Mapping[str, Mapping[str, Any]] = {
    "lm": {
        "dim": 256,
        "num_layers": 3,
        "hidden_scale": 1.5,
        "depformer_dim": 256,
        "depformer_num_layers": 1,
        "depformer_num_heads": 4,
        "depformer_dim_feedforward": 384,
        "dep_q": 8,
        "context": 64,
    }
}
"""Rows of 256, the super-block of the K-quants; an odd number of layers."""

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    write_tiny_checkpoint(folder, config=WIDE)
    for voice in sorted((folder / "voices").iterdir())[1:]:
        voice.unlink()
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def tensors(wide: Checkpoint) -> dict[str, Array]:
    return {name: wide.lm.read(name) for name in wide.lm.names()}


def in_gguf(wide: Checkpoint, tensors: Mapping[str, Array], folder: Path, pieces: int = 1) -> dict[str, Array]:
    """Writes it as GGUF; what its blocks are worth by the `gguf` package's own account."""
    beside_the_weights(wide, folder)
    path = write_gguf(folder / "personaplex-3L-q4_k.gguf", tensors, gguf_metadata(wide.geometry.lm))
    if pieces > 1:
        cut(path, pieces)
    return {name: worth(tensor, published_kinds(name)) for name, tensor in tensors.items()}


def worth(tensor: Array, kind: Kind) -> Array:
    blocks = quantize(tensor.astype(np.float32), kind)
    return dequantize(blocks, kind).reshape(tensor.shape)


def in_mlx(
    wide: Checkpoint, tensors: Mapping[str, Array], folder: Path, bits: int, **spelling: bool
) -> dict[str, Array]:
    beside_the_weights(wide, folder, MLX_MIMI_FILE)
    return write_mlx(folder, tensors, bits, **spelling)


WRITERS: dict[str, tuple[Callable[..., dict[str, Array]], dict[str, Any], float]] = {
    "gguf in pieces": (in_gguf, {"pieces": 7}, 0.12),
    "mlx of 4 bits": (in_mlx, {"bits": 4}, 0.12),
    "mlx of 8 bits, other spelling": (in_mlx, {"bits": 8, "underscores": True, "all_steps": True}, 0.01),
}


@pytest.fixture(scope="module", params=WRITERS)
def written(
    request: pytest.FixtureRequest,
    wide: Checkpoint,
    tensors: Mapping[str, Array],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Array], float]:
    """A checkpoint in another format, what its tensors are worth, and how far that may be from what was rounded."""
    folder = tmp_path_factory.mktemp("written")
    write, options, tolerance = WRITERS[request.param]
    return folder, write(wide, tensors, folder, **options), tolerance


def relative_error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_every_tensor_is_what_the_format_makes_of_it(
    written: tuple[Path, dict[str, Array], float], wide: Checkpoint, tensors: Mapping[str, Array]
) -> None:
    folder, expected, tolerance = written
    opened = Checkpoint.open(folder)
    assert opened.geometry == wide.geometry
    assert set(opened.lm.names()) == set(tensors)
    for name, tensor in tensors.items():
        assert opened.lm.shape(name) == tensor.shape
        found = opened.lm.read(name)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[name], err_msg=name)
        assert relative_error(found, tensor) < tolerance, name


@pytest.mark.parametrize("rows", [slice(0, 1), slice(100, 103), slice(-2, None), slice(5, 5)])
def test_some_rows_are_those_of_the_whole(written: tuple[Path, dict[str, Array], float], rows: slice) -> None:
    folder, expected, _ = written
    lm = Checkpoint.open(folder).lm
    for name in (
        "emb.3.weight",
        "transformer.layers.2.self_attn.in_proj_weight",
        "depformer.layers.0.gating.5.linear_out.weight",
    ):
        np.testing.assert_array_equal(lm.read(name, rows), expected[name][rows], err_msg=name)
    np.testing.assert_array_equal(lm.read("out_norm.alpha", slice(0, 1)), expected["out_norm.alpha"])


@pytest.fixture(scope="module")
def built(written: tuple[Path, dict[str, Array], float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("built") / "models"
    build_repository(written[0], models, slots=1)
    return models


@pytest.fixture(scope="module")
def original(wide: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("original") / "models"
    build_repository(wide.path, models, slots=1)
    return models


def test_the_repository_is_the_one_of_the_rounded_weights_as_safetensors(
    built: Path, written: tuple[Path, dict[str, Array], float], wide: Checkpoint, tmp_path: Path
) -> None:
    beside_the_weights(wide, tmp_path / "plain")
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in written[1].items()}, tmp_path / "plain" / LM_FILE
    )
    build_repository(tmp_path / "plain", tmp_path / "models", slots=1)
    found, expected = (json.loads((models / "manifest.json").read_text()) for models in (built, tmp_path / "models"))
    assert found["files"] == expected["files"]
    assert any(name.startswith("triton/temporal") for name in found["files"])


def answers(repository: Path) -> tuple[Array, Array]:
    """Hidden [6, dim] and audio codes [6, 8], greedily, after each of six columns that are the same every time."""
    models = Models(repository, slots=1)
    columns = np.random.default_rng(1).integers(0, models.text_card, (6, 17))
    hidden, codes = [], []
    for index, column in enumerate(columns):
        inputs = {"columns": column[None], "embeddings": models.no_embeddings(), **sampler(index + 1)}
        answer = one(models.temporal, 0, inputs, start=not index)
        hidden.append(answer["hidden"])
        heard = {"hidden": answer["hidden"], "text_token": column[:1], **sampler(index + 1)}
        codes.append(one(models.depformer, 0, heard)["codes"])
    return np.array(hidden), np.array(codes)


def test_it_answers_nearly_as_the_original(
    built: Path, original: Path, written: tuple[Path, dict[str, Array], float]
) -> None:
    (found, codes), (expected, expected_codes) = answers(built), answers(original)
    cosine = (found * expected).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() > 1 - 3 * written[2] ** 2
    if written[2] < 0.1:
        assert (codes == expected_codes).mean() > 0.7


def without_lm(config: Path, *kept: str) -> None:
    """Leaves of the section `lm` only what is named: a GGUF states the rest."""
    said = json.loads(config.read_text())
    said["lm"] = {key: said["lm"][key] for key in kept}
    config.write_text(json.dumps(said))


def test_a_gguf_states_its_geometry(wide: Checkpoint, tensors: Mapping[str, Array], tmp_path: Path) -> None:
    in_gguf(wide, tensors, tmp_path)
    without_lm(tmp_path / "config.json", "context", "dep_q")
    assert Checkpoint.open(tmp_path).geometry == wide.geometry


def test_a_gguf_is_found_by_its_own_path(wide: Checkpoint, tensors: Mapping[str, Array], tmp_path: Path) -> None:
    in_gguf(wide, tensors, tmp_path)
    path = tmp_path / "personaplex-3L-q4_k.gguf"
    assert Checkpoint.open(path).geometry == wide.geometry
    path.with_name("other.gguf").write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"holds 2 models: give the path of one of other\.gguf, personaplex-3L"):
        Checkpoint.open(tmp_path)
    piece = cut(path, 3)
    assert Checkpoint.open(piece).geometry == wide.geometry
    assert Checkpoint.open(piece).voices.keys() == wide.voices.keys()


def test_depth_steps_that_are_never_used_may_be_there(tmp_path: Path) -> None:
    """The same reading of a file of 16 steps, of which 8 are used, as of one that holds 8 of the config's 16."""
    write_tiny_checkpoint(tmp_path / "full")
    full = Checkpoint.open(tmp_path / "full")
    assert full.geometry.lm.depformer_steps == 16
    tensors = {name: full.lm.read(name) for name in full.lm.names() if is_required(name)}
    for name, tensor in tensors.items():
        if name.startswith("depformer.") and "self_attn" in name:
            tensors[name] = tensor[: len(tensor) // 2]
    beside_the_weights(full, tmp_path / "half")
    write_gguf(tmp_path / "half" / "half.gguf", tensors, {}, lambda _name: Kind.F32)
    half = Checkpoint.open(tmp_path / "half")
    assert half.geometry.lm.depformer_steps == 8
    files = []
    for checkpoint in (full, half):
        build_repository(checkpoint.path, tmp_path / "models", slots=1)
        manifest = json.loads((tmp_path / "models" / "manifest.json").read_text())
        files.append({name: file for name, file in manifest["files"].items() if name.startswith("triton")})
    assert files[0] == files[1]


@pytest.mark.parametrize("layers", [1, 24])
def test_any_number_of_layers(tmp_path: Path, layers: int) -> None:
    write_tiny_checkpoint(tmp_path / "tiny", config={"lm": {"num_layers": layers}})
    tiny = Checkpoint.open(tmp_path / "tiny")
    tensors = {name: tiny.lm.read(name) for name in tiny.lm.names()}
    for folder in (tmp_path / "gguf", tmp_path / "plain"):
        beside_the_weights(tiny, folder)
        without_lm(folder / "config.json", "num_heads", "depformer_num_heads", "context")
    write_gguf(tmp_path / "gguf" / "tiny.gguf", tensors, gguf_metadata(tiny.geometry.lm), lambda _name: Kind.F16)
    safetensors.numpy.save_file(tensors, tmp_path / "plain" / LM_FILE)
    for folder in (tmp_path / "gguf", tmp_path / "plain"):
        assert Checkpoint.open(folder).geometry == tiny.geometry
