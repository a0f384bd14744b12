"""MLX folders: matrices of 2, 4 or 8 bits in groups of 64, in either spelling; what is no such matrix is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model_repository.checkpoint.weights import mlx_folder
from model_repository.checkpoint.weights.mlx_folder import MLX_FILES, MlxFolder
from model_repository.errors import CheckpointError
from tests.model_repository.checkpoint.writers import mlx_dequantize, mlx_quantize

MATRIX = np.random.default_rng(2).standard_normal((6, 128), np.float32)
NAME = "transformer.layers.0.self_attn.out_proj.weight"

Tensors = dict[str, np.ndarray]


def folder_of(folder: Path, **files: Tensors) -> MlxFolder:
    for name in MLX_FILES:
        content = files.get(name.removesuffix(".safetensors"), {})
        safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in content.items()}, folder / name)
    return MlxFolder(folder)


def spelled(stem: str, mark: str, bits: int = 4) -> Tensors:
    return {f"{stem}{mark}{part}": array for part, array in mlx_quantize(MATRIX, bits).items()}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_width_of_bits_is_dequantized(tmp_path: Path, bits: int) -> None:
    folder = folder_of(tmp_path, temporal=spelled(NAME.removesuffix(".weight"), ".", bits))
    expected = mlx_dequantize(mlx_quantize(MATRIX, bits), bits)
    assert folder.shape(NAME) == (6, 128)
    np.testing.assert_array_equal(folder.read(NAME), expected)
    np.testing.assert_array_equal(folder.read(NAME, slice(2, 5)), expected[2:5])
    assert np.abs(expected - MATRIX).max() < 8 / 2**bits


@pytest.mark.parametrize("chunk", [1, 128 * 4, 128 * 5])
def test_it_does_not_matter_how_much_is_dequantized_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    folder = folder_of(tmp_path, temporal=spelled(NAME.removesuffix(".weight"), "."))
    expected = folder.read(NAME)
    monkeypatch.setattr(mlx_folder, "_CHUNK", chunk)
    np.testing.assert_array_equal(folder.read(NAME), expected)
    np.testing.assert_array_equal(folder.read(NAME, slice(1, 6)), expected[1:6])


def test_values_are_packed_from_the_low_bits_up(tmp_path: Path) -> None:
    packed = {
        "linears.0.weight": np.array([[0x76543210] + [0] * 7], np.uint32),
        "linears.0.scales": np.array([[2]], np.float16),
        "linears.0.biases": np.array([[-1]], np.float16),
    }
    read = folder_of(tmp_path, embeddings=packed).read("linears.0.weight")
    np.testing.assert_array_equal(read[0, :8], [-1, 1, 3, 5, 7, 9, 11, 13])


@pytest.mark.parametrize(
    ("stem", "mark", "name"),
    [
        ("a.self_attn.in_proj", "_", "a.self_attn.in_proj_weight"),
        ("a.self_attn.in_proj", ".", "a.self_attn.in_proj_weight"),
        ("a.self_attn.out_proj", "_", "a.self_attn.out_proj.weight"),
        ("a.self_attn.out_proj", ".", "a.self_attn.out_proj.weight"),
        ("depformer_in.3", "_", "depformer_in.3.weight"),
        ("depformer_in.3", ".", "depformer_in.3.weight"),
    ],
)
def test_both_spellings_are_the_references_tensor(tmp_path: Path, stem: str, mark: str, name: str) -> None:
    folder = folder_of(tmp_path, depformer=spelled(stem, mark), temporal={"x.alpha": np.ones(4, np.float32)})
    assert list(folder.names()) == ["x.alpha", name]
    assert folder.shape("x.alpha") == (1, 1, 4)
    assert folder.read("x.alpha").shape == (1, 1, 4)
    assert folder.read(name).shape == (6, 128)


def test_what_is_not_quantized_is_read_as_it_is(tmp_path: Path) -> None:
    stored = MATRIX.astype(ml_dtypes.bfloat16)
    folder = folder_of(tmp_path, embeddings={"emb.0.weight": stored})
    np.testing.assert_array_equal(folder.read("emb.0.weight"), stored.astype(np.float32))


def test_feed_forwards_of_all_steps_are_taken_apart(tmp_path: Path) -> None:
    steps, dim, hidden = 3, 64, 128
    generator = np.random.default_rng(3)
    inward = generator.standard_normal((steps * 2 * hidden, dim), np.float32)
    outward = mlx_quantize(generator.standard_normal((steps * dim, hidden), np.float32), 4)
    gating = "depformer.layers.1.gating"
    content = {f"{gating}.linear_in.weight": inward} | {f"{gating}.linear_out.{p}": a for p, a in outward.items()}
    folder = folder_of(tmp_path, depformer=content)
    assert set(folder.names()) == {f"{gating}.{s}.linear_{way}.weight" for s in range(steps) for way in ("in", "out")}
    np.testing.assert_array_equal(folder.read(f"{gating}.2.linear_in.weight"), inward[512:])
    found = folder.read(f"{gating}.1.linear_out.weight", slice(10, 20))
    np.testing.assert_array_equal(found, mlx_dequantize(outward, 4)[74:84])


def test_feed_forwards_of_no_number_of_steps_are_refused(tmp_path: Path) -> None:
    gating = "depformer.layers.0.gating"
    for content in (
        {f"{gating}.linear_in.weight": MATRIX},
        {f"{gating}.linear_in.weight": MATRIX, f"{gating}.linear_out.weight": MATRIX},
    ):
        with pytest.raises(CheckpointError, match=rf"'{gating}\.linear_in\.weight' does not hold the feed-forwards of"):
            folder_of(tmp_path, depformer=content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("x.scales"), "a quantized matrix is uint32 and has scales and biases"),
        (lambda t: t.pop("x.biases"), "a quantized matrix is uint32 and has scales and biases"),
        (lambda t: t.update({"x.weight": MATRIX}), "a quantized matrix is uint32 and has scales and biases"),
        (lambda t: t.update({"x.weight": t["x.weight"].astype(np.int32)}), "a quantized matrix is uint32"),
        (lambda t: t.update({"x.weight": t["x.weight"][:, :15]}), "no matrix of 2, 4, 8 bits in groups of 64"),
        (lambda t: t.update({"x.weight": t["x.weight"][:5]}), "no matrix of 2, 4, 8 bits"),
        (lambda t: t.update({"x.scales": t["x.scales"][:, :1]}), "no matrix of 2, 4, 8 bits"),
        (lambda t: t.update({"x.biases": t["x.biases"][0]}), "no matrix of 2, 4, 8 bits"),
        (lambda t: t.update({"x.scales": np.ones((6, 2), np.int32)}), "its scales and biases must be floats"),
        (lambda t: t.update({"x_weight": t["x.weight"]}), "'x.weight' is there in two spellings"),
        (lambda t: t.update({"y": np.ones(3, np.int64)}), "tensor 'y' is of integers"),
    ],
)
def test_what_is_no_quantized_matrix_is_refused(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    content = spelled("x", ".")
    change(content)
    with pytest.raises(CheckpointError, match=rf"temporal\.safetensors: .*{message}"):
        folder_of(tmp_path, temporal=content)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"depformer\.safetensors: tensor 'x' is in temporal\.safetensors too"):
        folder_of(tmp_path, temporal={"x": MATRIX}, depformer={"x": MATRIX})


def test_a_missing_file_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        folder.read("x")
    (tmp_path / "embeddings.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"embeddings\.safetensors: cannot be read: No such file"):
        MlxFolder(tmp_path)


def test_no_damage_to_a_header_does_more_than_be_refused(tmp_path: Path) -> None:
    gating = "depformer.layers.0.gating"
    steps = {f"{gating}.linear_in.weight": MATRIX[:, :2], f"{gating}.linear_out.weight": MATRIX[:, :1]}
    folder_of(tmp_path, depformer=spelled("y", ".") | steps)
    path = tmp_path / "depformer.safetensors"
    content = path.read_bytes()
    header = 8 + struct.unpack_from("<Q", content)[0]

    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        at = data.draw(st.integers(0, header))
        path.write_bytes(content[:at] + data.draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :])
        with suppress(CheckpointError):
            folder = MlxFolder(tmp_path)
            for name in folder.names():
                assert folder.read(name).size <= 8 * len(content)

    damaged()
