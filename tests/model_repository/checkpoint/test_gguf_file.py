"""GGUF files are read lazily, in every type people quantize to, and refused with a reason when broken."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from model_repository.checkpoint.weights import gguf_file
from model_repository.checkpoint.weights.gguf_file import GgufFile
from model_repository.checkpoint.weights.gguf_metadata import stated_sizes
from model_repository.errors import CheckpointError
from tests.model_repository.checkpoint.writers import cut, write_gguf

LARGEST_ERROR = {
    "F32": 0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 2**-7,
    "Q6_K": 2**-5,
    "Q5_K": 2**-4,
    "Q4_0": 2**-3,
    "Q4_K": 2**-3,
    "Q2_K": 2**-1,
}
"""Of each type, as a part of the largest value."""

TENSORS = {
    "emb.0.weight": np.random.default_rng(1).standard_normal((40, 512), np.float32),
    "out_norm.alpha": np.linspace(0, 1, 512, dtype=np.float32).reshape(1, 1, 512),
}


def written(path: Path, kind: str = "Q4_K", **options: Any) -> Path:
    return write_gguf(path, TENSORS, {}, lambda name: Kind.F32 if name.endswith("alpha") else Kind[kind], **options)


@pytest.mark.parametrize("kind", LARGEST_ERROR)
def test_every_type_is_dequantized(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.gguf", kind)
    file = GgufFile([path])
    assert list(file.names()) == list(TENSORS)
    found, original = file.read("emb.0.weight"), TENSORS["emb.0.weight"]
    assert file.shape("emb.0.weight") == found.shape == (40, 512)
    assert found.dtype == np.float32
    reference = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "emb.0.weight")
    np.testing.assert_array_equal(found, gguf.dequantize(reference.data, reference.tensor_type))
    assert np.abs(found - original).max() <= LARGEST_ERROR[kind] * np.abs(original).max()
    np.testing.assert_array_equal(file.read("emb.0.weight", slice(13, 29)), found[13:29])


@pytest.mark.parametrize("chunk", [1, 512 * 7, 512 * 39, 512 * 40])
def test_it_does_not_matter_how_much_is_dequantized_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    file = GgufFile([written(tmp_path / "a.gguf")])
    expected = file.read("emb.0.weight")
    monkeypatch.setattr(gguf_file, "_CHUNK", chunk)
    np.testing.assert_array_equal(file.read("emb.0.weight"), expected)
    np.testing.assert_array_equal(file.read("emb.0.weight", slice(3, 25)), expected[3:25])


@pytest.mark.parametrize("flat", [False, True])
def test_a_norm_has_the_references_axes(tmp_path: Path, flat: bool) -> None:
    file = GgufFile([written(tmp_path / "a.gguf", flat_norms=flat)])
    assert file.shape("out_norm.alpha") == (1, 1, 512)
    np.testing.assert_array_equal(file.read("out_norm.alpha"), TENSORS["out_norm.alpha"])
    assert file.read("out_norm.alpha", slice(1, 1)).shape == (0, 1, 512)


@pytest.mark.parametrize("pieces", [2, 9, 61])
def test_pieces_are_one_file(tmp_path: Path, pieces: int) -> None:
    expected = GgufFile([written(tmp_path / "whole.gguf")]).read("emb.0.weight")
    first = cut(written(tmp_path / "a.gguf"), pieces)
    file = GgufFile([first.with_name(f"a.gguf.shard-{index:02d}") for index in range(pieces)])
    np.testing.assert_array_equal(file.read("emb.0.weight"), expected)
    np.testing.assert_array_equal(file.read("emb.0.weight", slice(17, 31)), expected[17:31])


def grown(path: Path, rows: int) -> Path:
    """The file with `emb.0.weight` declared to have `rows` rows of Q4_K and padded with a hole to hold them."""
    content = path.read_bytes()
    at = content.index(struct.pack("<2Q", 512, 40)) + 8
    content = content[:at] + struct.pack("<Q", rows) + content[at + 8 :]
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(len(content) + rows * 288)
    return path


def test_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    """The hole of 4 GiB would be 29 GB as float32; two rows of it are not."""
    path = grown(written(tmp_path / "a.gguf"), 15_000_000)
    with pytest.raises(CheckpointError, match="no tensor"):
        GgufFile([path]).read("x")
    tracemalloc.start()
    found = GgufFile([path]).read("emb.0.weight", slice(14_000_000, 14_000_002))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not found.any()
    assert peak < 2_000_000


def test_a_large_tensor_takes_little_more_memory_than_its_floats(tmp_path: Path) -> None:
    path = grown(written(tmp_path / "a.gguf"), 100_000)
    file = GgufFile([path])
    tracemalloc.start()
    found = file.read("emb.0.weight")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.nbytes == 100_000 * 512 * 4
    assert peak < found.nbytes + 120_000_000


def test_a_file_cut_short_is_refused_by_the_tensor_that_is_not_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"a\.gguf: .*'out_norm\.alpha' ends at byte .*truncated"):
        GgufFile([path])


def test_missing_last_pieces_are_a_reason_given(tmp_path: Path) -> None:
    first = cut(written(tmp_path / "a.gguf"), 3)
    with pytest.raises(CheckpointError, match=r"pieces of which the last are missing.*truncated"):
        GgufFile([first, first.with_name("a.gguf.shard-01")])


def test_a_file_cut_short_after_opening_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    file = GgufFile([path])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"a\.gguf: the file ends inside tensor 'emb\.0\.weight'"):
        file.read("emb.0.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        file.read("emb.0.weight")


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", TENSORS, {}, lambda _name: Kind.F32)
    content = path.read_bytes()
    at = content.index(struct.pack("<2QI", 512, 40, Kind.F32)) + 16
    for code, message in ((Kind.IQ4_NL, "is IQ4_NL; read are BF16, F16"), (1000, "of unknown type 1000")):
        path.write_bytes(content[:at] + struct.pack("<I", code) + content[at + 4 :])
        with pytest.raises(CheckpointError, match=message):
            GgufFile([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file ends inside its header"),
        (b"GGML" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I2Q", 1, 0, 0), "version 1 is not read"),
        (b"GGUF" + struct.pack(">I2Q", 3, 0, 0), "version 50331648 is not read, only 2, 3, little-endian"),
        (b"GGUF" + struct.pack("<I2Q", 3, 2**60, 0), "declares 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<I2Q", 3, 0, 2**60), "more than 65536"),
        (b"GGUF" + struct.pack("<I2QQ", 3, 0, 1, 2**60), "a string of 1152921504606846976 bytes"),
        (b"GGUF" + struct.pack("<I2QQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**60), "an array of 11529215\\d+ elements"),
        (b"GGUF" + struct.pack("<I2QQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1), "an array of type 9, which is not read"),
        (b"GGUF" + struct.pack("<I2QQ1sI", 3, 0, 1, 1, b"k", 77), "a value of unknown type 77"),
        (b"GGUF" + struct.pack("<I2QQ1s", 3, 0, 1, 1, b"\xff"), "not UTF-8"),
        (b"GGUF" + struct.pack("<I2QQ1sI", 3, 1, 0, 1, b"w", 9), "tensor 'w' has 9 axes"),
        (b"GGUF" + struct.pack("<I2QQ1sIQIQ", 3, 1, 0, 1, b"w", 1, 31, Kind.Q8_0, 0), "Q8_0 rows cannot have 31"),
        (b"GGUF" + struct.pack("<I2QQ1sIQIQ", 3, 1, 0, 1, b"w", 1, 2**62, Kind.F32, 0), "truncated"),
        (b"GGUF" + struct.pack("<I2QQ1sIQIQ", 3, 1, 0, 1, b"w", 1, 1, Kind.F32, 2**63), "truncated"),
        (b"GGUF" + struct.pack("<I2Q", 3, 2, 0) + 2 * struct.pack("<Q1sIQIQ", 1, b"w", 1, 0, 0, 0) + bytes(9), "twice"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.gguf: no GGUF file: .*{message}"):
        GgufFile([tmp_path / "a.gguf"])


def test_an_alignment_that_is_none_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "personaplex")
    writer.add_uint32("general.alignment", 33)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"general\.alignment must be a power of two, got 33"):
        GgufFile([tmp_path / "a.gguf"])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_no_damage_to_the_header_does_more_than_be_refused(tmp_path: Path) -> None:
    content = written(tmp_path / "a.gguf").read_bytes()
    header = content.index(struct.pack("<2Q", 512, 1)) + 60
    path = tmp_path / "broken.gguf"

    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            broken = content[: data.draw(st.integers(0, header))]
        else:
            at = data.draw(st.integers(0, header))
            broken = content[:at] + data.draw(st.binary(min_size=1, max_size=8)) + content[at + 1 :]
        path.write_bytes(broken)
        with suppress(CheckpointError):
            file = GgufFile([path])
            for name in file.names():
                assert file.read(name).size <= 8 * len(content)

    damaged()


def stated(tmp_path: Path, metadata: dict[str, Any], architecture: str = "personaplex") -> dict[str, Any]:
    tensors = {
        "emb.0.weight": np.zeros((9, 32), np.float32),
        "transformer.layers.0.gating.linear_in.weight": np.zeros((44, 32), np.float32),
        "depformer_in.0.weight": np.zeros((16, 32), np.float32),
    }
    path = write_gguf(tmp_path / "a.gguf", tensors, metadata, lambda _name: Kind.F32, architecture)
    file = GgufFile([path])
    return dict(stated_sizes(file.metadata, file, "a.gguf"))


def test_metadata_tell_what_tensors_do_not(tmp_path: Path) -> None:
    said = {"attention.head_count": 4, "depformer.attention.head_count": 2, "rope.freq_base": 5000.0, "block_count": 1}
    assert stated(tmp_path, said) == {"num_heads": 4, "depformer_num_heads": 2, "max_period": 5000.0}
    assert stated(tmp_path, {}) == {}


@pytest.mark.parametrize(
    "fitting",
    [{"audio_vocab_size": 9}, {"audio_vocab_size": 8}, {"feed_forward_length": 22}, {"feed_forward_length": 33}],
)
def test_metadata_may_count_the_initial_token_or_not_and_say_either_width(
    tmp_path: Path, fitting: dict[str, int]
) -> None:
    assert stated(tmp_path, fitting) == {}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"block_count": 24}, r"metadata say personaplex\.block_count = 24, its tensors 1"),
        ({"embedding_length": 64}, r"personaplex\.embedding_length = 64, its tensors 32"),
        ({"feed_forward_length": 44}, r"feed_forward_length = 44, its tensors 22"),
        ({"audio_vocab_size": 10}, r"audio_vocab_size = 10, its tensors 8"),
        ({"depformer.embedding_length": 16.0}, r"embedding_length = 16\.0, its tensors 16"),
    ],
)
def test_metadata_that_the_tensors_contradict(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        stated(tmp_path, metadata)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.gguf: general\.architecture must be 'personaplex', got 'llama'"):
        stated(tmp_path, {}, "llama")
