"""A checkpoint folder opens only if everything is there with its shape; otherwise the message names what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from model_repository.build import build_repository
from model_repository.checkpoint.folder import LM_FILE, MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.errors import CheckpointError


def rewrite(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Replaces a linked safetensors file by a changed copy."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    path.unlink()
    safetensors.numpy.save_file(tensors, path)


def test_everything_of_the_golden_checkpoint_is_at_hand(golden_checkpoint: Checkpoint) -> None:
    assert golden_checkpoint.geometry.lm.temporal.dim == 32
    assert golden_checkpoint.lm.read("out_norm.alpha").shape == (1, 1, 32)
    assert golden_checkpoint.mimi.read("encoder.model.0.conv.conv.bias").shape == (4,)
    assert golden_checkpoint.tokenizer.is_file()
    assert list(golden_checkpoint.voices) == ["NATF0"]
    assert golden_checkpoint.voice("NATF0").frames == 13


@pytest.mark.parametrize("name", [MIMI_FILE, TOKENIZER_FILE])
def test_a_missing_file_is_named(checkpoint_copy: Path, name: str) -> None:
    (checkpoint_copy / name).unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint: {name} is missing \(expected: "):
        Checkpoint.open(checkpoint_copy)


def test_missing_voices_are_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "voices" / "NATF0.pt").unlink()
    with pytest.raises(CheckpointError, match=r"voices: holds no voice NAME\.pt"):
        Checkpoint.open(checkpoint_copy)
    (checkpoint_copy / "voices").rmdir()
    with pytest.raises(CheckpointError, match=r"voices/ is missing .*or voices\.tgz"):
        Checkpoint.open(checkpoint_copy)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        Checkpoint.open(tmp_path / "nowhere")


def rewrite_config(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    change(config["lm"])
    (checkpoint / "config.json").unlink()
    (checkpoint / "config.json").write_text(json.dumps(config))


def test_what_the_tensors_tell_the_config_need_not(checkpoint_copy: Path, golden_checkpoint: Checkpoint) -> None:
    told = ("dim", "num_layers", "hidden_scale", "card", "text_card", "depformer_dim", "depformer_num_layers")
    rewrite_config(checkpoint_copy, lambda lm: [lm.pop(key) for key in (*told, "depformer_dim_feedforward", "dep_q")])
    assert Checkpoint.open(checkpoint_copy).geometry.lm == golden_checkpoint.geometry.lm


@pytest.mark.parametrize("heads", ["num_heads", "depformer_num_heads"])
def test_the_number_of_heads_must_be_said_if_the_width_is_not_the_published(checkpoint_copy: Path, heads: str) -> None:
    rewrite_config(checkpoint_copy, lambda lm: lm.pop(heads))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: its width .*config\.json must say lm\.{heads}"):
        Checkpoint.open(checkpoint_copy)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_layers": 1}, r"unexpected tensor 'transformer\.layers\.1\."),
        ({"num_layers": 3}, r"missing tensor 'transformer\.layers\.2\."),
        ({"hidden_scale": 3}, r"wrong shape of tensor 'transformer\.layers\.0\.gating\.linear_in\.weight'"),
        ({"depformer_dim_feedforward": 33}, r"wrong shape of tensor 'depformer\.layers\.0\.gating\.0\.linear_in"),
        ({"text_card": 99}, r"wrong shape of tensor 'text_emb\.weight'"),
    ],
)
def test_a_config_that_the_tensors_contradict_is_an_error(
    checkpoint_copy: Path, said: dict[str, int], message: str
) -> None:
    rewrite_config(checkpoint_copy, lambda lm: lm.update(said))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(checkpoint_copy)


def test_a_layer_missing_between_others_is_named(checkpoint_copy: Path) -> None:
    rewrite_config(checkpoint_copy, lambda lm: lm.pop("num_layers"))
    layer = "transformer.layers.0."
    rewrite(
        checkpoint_copy / LM_FILE,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(layer)],
    )
    with pytest.raises(CheckpointError, match=r"missing tensors of layer 'transformer\.layers\.0' .there is a layer 1"):
        Checkpoint.open(checkpoint_copy)


@pytest.mark.parametrize(("names", "found"), [((), "nothing"), (("a.onnx", "b.txt"), r"a\.onnx, b\.txt")])
def test_a_folder_without_weights_says_what_is_there_and_what_is_read(
    tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=rf"expected model\.safetensors .*NAME\.gguf.*MLX.*; found {found}$"):
        Checkpoint.open(tmp_path)


def test_a_file_of_another_kind_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(CheckpointError, match=r"model\.onnx: not a checkpoint; what is read is a folder with"):
        Checkpoint.open(tmp_path / "model.onnx")


def test_a_broken_config_is_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "config.json").unlink()
    (checkpoint_copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        Checkpoint.open(checkpoint_copy)


def test_a_wrong_shape_names_tensor_expected_and_got(checkpoint_copy: Path) -> None:
    name = "transformer.layers.1.self_attn.out_proj.weight"
    rewrite(checkpoint_copy / LM_FILE, lambda tensors: tensors.update({name: np.zeros((32, 31), np.float32)}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint_copy)
    assert str(caught.value) == f"model.safetensors: wrong shape of tensor '{name}': expected [32, 32], got [32, 31]"


@pytest.mark.parametrize("variant", ["fp32", pytest.param("int8", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("file", "name", "number"),
    [
        (LM_FILE, "transformer.layers.1.gating.linear_out.weight", np.nan),
        (LM_FILE, "depformer_emb.3.weight", np.inf),
        (MIMI_FILE, "decoder.model.0.conv.conv.weight", -np.inf),
    ],
)
def test_numbers_that_are_not_finite_are_refused_by_name(
    checkpoint_copy: Path, tmp_path: Path, variant: str, file: str, name: str, number: float
) -> None:
    rewrite(checkpoint_copy / file, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, number))
    with pytest.raises(CheckpointError, match=rf"{file}: tensor '{name}' has numbers that are not finite"):
        build_repository(checkpoint_copy, tmp_path / "models", variant=variant)
    assert not (tmp_path / "models").exists()


def test_layers_that_are_not_alike_are_refused_by_name(checkpoint_copy: Path) -> None:
    wide, name = np.zeros((100, 32), np.float32), "transformer.layers.1.gating.linear_in.weight"
    rewrite(checkpoint_copy / LM_FILE, lambda tensors: tensors.update({name: wide}))
    with pytest.raises(
        CheckpointError, match=rf"wrong shape of tensor '{name}': expected \[176, 32\], got \[100, 32\]"
    ):
        Checkpoint.open(checkpoint_copy)


def test_a_weight_of_integers_is_refused_by_name(checkpoint_copy: Path) -> None:
    name = "transformer.layers.0.norm1.alpha"
    rewrite(checkpoint_copy / LM_FILE, lambda tensors: tensors.update({name: np.ones((1, 1, 32), np.int64)}))
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor '{name}': dtype I64 is not read"):
        Checkpoint.open(checkpoint_copy)


def test_a_missing_tensor_is_named(checkpoint_copy: Path) -> None:
    rewrite(checkpoint_copy / MIMI_FILE, lambda tensors: tensors.pop("downsample.conv.conv.conv.weight"))
    with pytest.raises(CheckpointError, match=rf"{MIMI_FILE}: missing tensor 'downsample.conv.conv.conv.weight'"):
        Checkpoint.open(checkpoint_copy)


def test_a_file_cut_short_is_named(checkpoint_copy: Path) -> None:
    content = (checkpoint_copy / LM_FILE).read_bytes()
    (checkpoint_copy / LM_FILE).unlink()
    (checkpoint_copy / LM_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated"):
        Checkpoint.open(checkpoint_copy)


def test_shards_are_found(checkpoint_copy: Path, golden_checkpoint: Checkpoint) -> None:
    tensors = safetensors.numpy.load_file(checkpoint_copy / LM_FILE)
    (checkpoint_copy / LM_FILE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for shard, part in enumerate((names[:70], names[70:])):
        file = f"model-0000{shard + 1}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, checkpoint_copy / file)
        weight_map |= dict.fromkeys(part, file)
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    opened = Checkpoint.open(checkpoint_copy)
    for name in ("text_emb.weight", "depformer_in.3.weight"):
        np.testing.assert_array_equal(opened.lm.read(name), golden_checkpoint.lm.read(name))


def test_legacy_codebook_names_are_read(checkpoint_copy: Path, golden_checkpoint: Checkpoint) -> None:
    name = "quantizer.rvq_rest.vq.layers.2._codebook."
    rewrite(
        checkpoint_copy / MIMI_FILE,
        lambda tensors: tensors.update({name + "embed_avg": tensors.pop(name + "embedding_sum")}),
    )
    found = Checkpoint.open(checkpoint_copy).mimi.read(name + "embedding_sum")
    np.testing.assert_array_equal(found, golden_checkpoint.mimi.read(name + "embedding_sum"))
