"""Saved dictionaries of tensors are read without torch; whatever else such a file can hold is refused, not run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from model_repository.checkpoint.weights import torch_file
from model_repository.checkpoint.weights.torch_file import read_torch_tensors
from model_repository.errors import CheckpointError

VALUES = np.arange(6, dtype="<f4")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    encoded = pickle.encode_long(value)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def row(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def tensor(
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    offset: int = 0,
    storage: str = "torch\nFloatStorage",
    key: str = "0",
    count: int = 6,
    rebuild: str = "torch._utils\n_rebuild_tensor_v2",
) -> bytes:
    """Opcodes that leave a tensor on the stack, as torch writes them; any argument can be a lie."""
    persistent = row(text("storage"), f"c{storage}\n".encode(), text(key), text("cpu"), number(count)) + b"Q"
    sizes = row(*map(number, shape)), row(*map(number, strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    return f"c{rebuild}\n".encode() + row(persistent, number(offset), *sizes, b"\x89", hooks) + b"R"


def dictionary(value: bytes) -> bytes:
    return b"\x80\x02}" + text("w") + value + b"s."


def archive(pickled: bytes, records: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        file.writestr("voice/data.pkl", pickled)
        for name, record in (records if records is not None else {"voice/data/0": VALUES.tobytes()}).items():
            file.writestr(name, record)
    return content.getvalue()


def test_a_file_written_by_torch() -> None:
    tensors = read_torch_tensors(Path(__file__).parent / "written_by_torch.pt", "x.pt")
    expected = np.arange(24).reshape(2, 3, 4)
    assert list(tensors) == ["bfloat16", "float16", "float32", "int64", "int32", "permuted", "sliced"]
    for name in ("bfloat16", "float16", "float32", "int64", "int32"):
        assert tensors[name].dtype == np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        np.testing.assert_array_equal(tensors[name].astype(np.int64), expected)
    np.testing.assert_array_equal(tensors["permuted"], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(tensors["sliced"], expected[1:, 1:, ::2])
    assert all(array.flags.c_contiguous for array in tensors.values())


def test_a_view_into_a_storage() -> None:
    content = archive(dictionary(tensor(shape=(2, 2), strides=(1, 2), offset=1)))
    np.testing.assert_array_equal(read_torch_tensors(content, "x.pt")["w"], [[1, 3], [2, 4]])


def test_scalars_and_empty_tensors() -> None:
    assert read_torch_tensors(archive(dictionary(tensor((), (), 5))), "x.pt")["w"] == 5
    assert read_torch_tensors(archive(dictionary(tensor((0, 3), (3, 1)))), "x.pt")["w"].shape == (0, 3)


def test_a_big_endian_file_is_swapped() -> None:
    records = {"voice/byteorder": b"big", "voice/data/0": VALUES.astype(">f4").tobytes()}
    tensors = read_torch_tensors(archive(dictionary(tensor()), records), "x.pt")
    np.testing.assert_array_equal(tensors["w"], VALUES.reshape(2, 3))


class Attack:
    """Unpickling it would run a command."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._flag}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_pickle_that_runs_a_command_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    pickled = pickle.dumps({"w": Attack(tmp_path / "flag")}, protocol=protocol)
    with pytest.raises(CheckpointError, match=r"^x\.pt: its pickle (asks for '(posix|nt).system'|uses )"):
        read_torch_tensors(archive(pickled), "x.pt")
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (dictionary(tensor(rebuild="torch._utils\n_rebuild_parameter")), "'torch._utils._rebuild_parameter', which is"),
        (dictionary(tensor(rebuild="builtins\neval")), "asks for 'builtins.eval', which is not allowed"),
        (dictionary(tensor(rebuild="collections\nOrderedDict")), "calls something that is not a tensor"),
        (dictionary(tensor(storage="torch\nBoolStorage")), "'torch.BoolStorage', which is not allowed"),
        (dictionary(tensor(storage="collections\nOrderedDict")), "not a tensor's storage"),
        (dictionary(tensor(count=-1)), "not a tensor's storage"),
        (dictionary(tensor(strides=(3,))), "cannot be"),
        (dictionary(tensor(shape=(-2, 3))), "cannot be"),
        (dictionary(tensor(strides=(-3, 1))), "cannot be"),
        (dictionary(tensor(shape=(2**50, 3))), "cannot be"),
        (dictionary(tensor(shape=(1,) * 9, strides=(1,) * 9)), "cannot be"),
        (dictionary(tensor(shape=(2, 4))), "does not fit a storage of 6"),
        (dictionary(tensor(strides=(4, 1))), "does not fit a storage of 6"),
        (dictionary(tensor(offset=1)), "does not fit a storage of 6"),
        (dictionary(tensor(shape=(7, 1), strides=(0, 0))), "does not fit a storage of 6"),
        (dictionary(tensor(shape=(2**39, 1), strides=(0, 0))), "larger than the file"),
        (dictionary(tensor(count=7)), "24 bytes do not hold 7 of float32"),
        (dictionary(tensor(count=2**45)), "24 bytes do not hold"),
        (dictionary(tensor(key="1")), "record 'data/1' is missing"),
        (dictionary(tensor(key="../../0")), "record 'data/../../0' is missing"),
        (dictionary(number(3)), "not hold a plain dictionary of tensors"),
        (b"\x80\x02" + tensor() + b".", "not hold a plain dictionary of tensors"),
        (b"\x80\x02}" + number(1) + tensor() + b"s.", "not hold a plain dictionary of tensors"),
        (dictionary(tensor() + b"}b"), "uses BUILD"),
        (dictionary(tensor())[:-1], "malformed"),
        (dictionary(tensor())[:40], "malformed"),
        (b"\x80\x02t.", "malformed"),
        (b"\x80\x02h\x09.", "malformed"),
        (dictionary(number(1) + b"\x85" * 500_000), "not hold a plain dictionary of tensors"),
        (b"\x80\x02}" + number(1) + b"\x85" * 500_000 + tensor() + b"s.", "not hold a plain dictionary of tensors"),
        (b"\x80\x02" + b")" * 2**20 + b".", "pickle is larger than"),
        (dictionary(tensor(key="k" * 5000)), "record 'data/kkk"),
        (b"\x80\x02}]" + text("w") + b"s.", "uses EMPTY_LIST"),
        (b"\x80\x02X\xff\xff\xff\x7fw.", "malformed"),
        (b"", "malformed"),
    ],
)
def test_a_tampered_pickle_is_refused(pickled: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^x\.pt: .*{message}") as caught:
        read_torch_tensors(archive(pickled), "x.pt")
    assert len(str(caught.value)) <= 300


def test_a_huge_memo_index_allocates_nothing() -> None:
    """An unpickler would make room for 2**32 objects."""
    assert read_torch_tensors(archive(b"\x80\x02}r\xff\xff\xff\xff."), "x.pt") == {}


def test_a_key_of_nested_tuples_is_refused_at_once() -> None:
    """Hashing it would take 2**200 steps."""
    nested = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(200))
    with pytest.raises(CheckpointError, match="plain dictionary of tensors"):
        read_torch_tensors(archive(b"\x80\x02})" + nested + b"K\x01s."), "x.pt")


def test_tensors_that_multiply_a_shared_storage_are_refused() -> None:
    pickled = b"\x80\x02}(" + b"".join(text(str(index)) + tensor() for index in range(100)) + b"u."
    assert len(read_torch_tensors(archive(pickled), "x.pt")) == 100
    records = {"voice/data/0": bytes(4 * 10**6)}
    whole = tensor(shape=(10**6,), strides=(1,), count=10**6)
    pickled = b"\x80\x02}(" + b"".join(text(str(index)) + whole for index in range(100)) + b"u."
    with pytest.raises(CheckpointError, match=r"x\.pt: its tensors are larger than the file"):
        read_torch_tensors(archive(pickled, records), "x.pt")


def test_a_dictionary_subclass_is_refused() -> None:
    pickled = pickle.dumps(collections.defaultdict(int), protocol=2)
    with pytest.raises(CheckpointError, match="which is not allowed"):
        read_torch_tensors(archive(pickled), "x.pt")


def test_compressed_records_are_refused() -> None:
    """They could unpack to any size; PyTorch writes none."""
    records = {"voice/data/0": bytes(10_000_000)}
    content = archive(dictionary(tensor(count=2_500_000)), records, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"x\.pt: record 'data.pkl' is compressed"):
        read_torch_tensors(content, "x.pt")


def test_a_truncated_archive_is_refused() -> None:
    content = archive(dictionary(tensor()))
    for length in range(0, len(content), 7):
        with pytest.raises(CheckpointError, match=r"^x\.pt: "):
            read_torch_tensors(content[:length], "x.pt")


def test_flipped_bytes_never_escape_as_another_error() -> None:
    content = archive(dictionary(tensor()))
    messages = []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        try:
            read_torch_tensors(bytes(damaged), "x.pt")
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > len(content) // 2
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PyTorch zip file"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(100), "files of PyTorch before 1.6"),
        (archive(b"", {"other/data.pkl": b""}), "2 data.pkl records"),
    ],
)
def test_what_is_no_saved_dictionary_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_torch_tensors(content, "x.pt")


def test_a_zip_without_a_pickle_is_refused() -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("readme", b"hello")
    with pytest.raises(CheckpointError, match=r"0 data\.pkl records"):
        read_torch_tensors(content.getvalue(), "x.pt")


def test_a_file_larger_than_any_voice_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.pt").open("wb") as file:
        file.truncate(torch_file.MAX_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match="are more than the"):
        read_torch_tensors(tmp_path / "x.pt", "x.pt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^voices/x\.pt: .*No such file"):
        read_torch_tensors(tmp_path / "x.pt", "voices/x.pt")
