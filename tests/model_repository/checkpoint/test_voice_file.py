"""A voice is the same in whatever form its file has; a file that is none says why."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model_repository.checkpoint.voices.voice import Voice
from model_repository.checkpoint.voices.voice_file import is_voice_file, read_voice, voice_name
from model_repository.errors import CheckpointError
from model_repository.synthetic.torch_writer import write_torch_tensors

DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
SHAPE = SimpleNamespace(dim=4, card=2048, text_card=512, delays=DELAYS)
"""What a manifest says; no more is needed."""

EMBEDDINGS = np.linspace(-2, 2, 24, dtype=np.float32).reshape(6, 4).astype(ml_dtypes.bfloat16)
CACHE = (100 * np.arange(4)[None] + np.arange(17)[:, None]).astype(np.int64)


@pytest.fixture
def expected() -> Voice:
    return Voice.from_cache("V", EMBEDDINGS.astype(np.float32)[:, None, None], CACHE[None], SHAPE)


def write_pt(folder: Path) -> Path:
    write_torch_tensors(folder / "V.pt", {"embeddings": EMBEDDINGS[:, None, None], "cache": CACHE[None]})
    return folder / "V.pt"


def write_archive(folder: Path, *names: str) -> Path:
    content = write_pt(folder).read_bytes()
    with tarfile.open(folder / "voices.tgz", "w:gz") as tar:
        for name in names or ("V",):
            info = tarfile.TarInfo(f"voices/{name}.pt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "voices.tgz"


def write_safetensors(folder: Path, **tensors: np.ndarray) -> Path:
    stored = {"embeddings": EMBEDDINGS[:, None, None], "cache": CACHE[None]} | tensors
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in stored.items()}, folder / "V.safetensors"
    )
    return folder / "V.safetensors"


def write_saved(folder: Path) -> Path:
    Voice.from_cache("V", EMBEDDINGS.astype(np.float32)[:, None, None], CACHE[None], SHAPE).save(
        folder / "V.safetensors"
    )
    return folder / "V.safetensors"


def write_bin(folder: Path) -> Path:
    header = struct.pack("<4I", 0x50506558, 1, *CACHE.shape)
    rows = struct.pack("<2I", *EMBEDDINGS.shape)
    content = header + CACHE.astype("<i8").tobytes() + rows + EMBEDDINGS.astype("<f4").tobytes()
    (folder / "V.bin").write_bytes(content)
    return folder / "V.bin"


def write_pair(folder: Path, **changes: Any) -> Path:
    (folder / "V.embeddings.bin").write_bytes(EMBEDDINGS.astype("<f4").tobytes())
    description = {"num_frames": 6, "dim": 4, "cache": CACHE.tolist()} | changes
    (folder / "V.cache.json").write_text(json.dumps(description))
    return folder / "V.embeddings.bin"


def write_json(folder: Path) -> Path:
    return write_pair(folder).with_name("V.cache.json")


def write_flat_safetensors(folder: Path) -> Path:
    return write_safetensors(folder, embeddings=EMBEDDINGS, cache=CACHE.astype(np.int32))


WRITERS = [
    write_pt,
    write_archive,
    write_safetensors,
    write_flat_safetensors,
    write_saved,
    write_bin,
    write_pair,
    write_json,
]


@pytest.mark.parametrize("write", WRITERS)
def test_it_is_the_same_in_every_form(tmp_path: Path, write: Callable[[Path], Path], expected: Voice) -> None:
    path = write(tmp_path)
    voice = read_voice(path, SHAPE)
    assert voice.name == "V"
    assert is_voice_file(path)
    np.testing.assert_array_equal(voice.embeddings, expected.embeddings)
    np.testing.assert_array_equal(voice.columns, expected.columns)
    assert voice.embeddings.dtype == np.float32


@pytest.mark.parametrize("write", [write for write in WRITERS if write is not write_archive])
def test_it_goes_by_the_name_it_is_given(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    assert read_voice(write(tmp_path), SHAPE, "ME").name == "ME"
    with pytest.raises(CheckpointError, match="voice name 'a/b' must be"):
        read_voice(write(tmp_path), SHAPE, "a/b")


@pytest.mark.parametrize("write", WRITERS)
def test_a_voice_of_another_model_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with pytest.raises(CheckpointError, match=r"must be|are not rows of"):
        read_voice(write(tmp_path), SimpleNamespace(**{**vars(SHAPE), "dim": 5}))
    with pytest.raises(CheckpointError, match="tokens outside the vocabularies"):
        read_voice(write(tmp_path), SimpleNamespace(**{**vars(SHAPE), "card": 100}))


def test_an_archive_of_several_voices_needs_a_name(tmp_path: Path) -> None:
    path = write_archive(tmp_path, "B", "A")
    assert read_voice(path, SHAPE, "B").name == "B"
    with pytest.raises(CheckpointError, match=r"voices\.tgz: say which voice; it has A, B"):
        read_voice(path, SHAPE)
    with pytest.raises(CheckpointError, match=r"voices\.tgz: no voice 'C'; it has A, B"):
        read_voice(path, SHAPE, "C")


@pytest.mark.parametrize(
    ("name", "is_one", "called"),
    [
        ("a.b.pt", True, "a.b"),
        ("V.embeddings.bin", True, "V"),
        ("V.bin", True, "V"),
        ("voices.tar.gz", True, "voices"),
        ("clip.wav", False, None),
        ("pt", False, None),
    ],
)
def test_what_a_file_is_called(name: str, is_one: bool, called: str | None) -> None:
    assert is_voice_file(Path(name)) is is_one
    if called is not None:
        assert voice_name(Path(name)) == called


def test_a_recording_is_no_voice_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"clip\.wav: not the name of a voice file; read are \.pt, \.safetensors"):
        read_voice(tmp_path / "clip.wav", SHAPE)
    with pytest.raises(CheckpointError, match=r"V\.pt: no such file"):
        read_voice(tmp_path / "V.pt", SHAPE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 5}, "'dim' must be 4, got 5"),
        ({"num_frames": 5}, "holds 6 rows, its V.cache.json says 5"),
        ({"cache": None}, "'cache' must be rows of tokens"),
        ({"cache": [[1, 2], [3]]}, "'cache' must be rows of tokens"),
        ({"cache": [["a"] * 4] * 17}, "'cache' must be rows of tokens"),
        ({"cache": [[2**70] * 4] * 17}, "'cache' must be rows of tokens"),
        ({"cache": CACHE[:16].tolist()}, r"'cache' must be \[1, 17, 4\]"),
    ],
)
def test_a_pair_whose_halves_do_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_voice(write_pair(tmp_path, **changes), SHAPE)


def test_a_pair_may_count_the_frame_that_has_no_row(tmp_path: Path) -> None:
    assert read_voice(write_pair(tmp_path, num_frames=7), SHAPE).frames == 7


@pytest.mark.parametrize("missing", ["V.embeddings.bin", "V.cache.json"])
def test_the_missing_half_of_a_pair_is_named(tmp_path: Path, missing: str) -> None:
    write_pair(tmp_path)
    (tmp_path / missing).unlink()
    given = ({"V.embeddings.bin", "V.cache.json"} - {missing}).pop()
    with pytest.raises(CheckpointError, match=rf"{missing}: cannot be read: No such file"):
        read_voice(tmp_path / given, SHAPE)


def test_safetensors_that_hold_no_voice_are_refused(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.ones(2, np.float32)}, tmp_path / "V.safetensors")
    with pytest.raises(CheckpointError, match=r"V\.safetensors: a voice holds .*; it holds \['w'\]"):
        read_voice(tmp_path / "V.safetensors", SHAPE)
    with pytest.raises(CheckpointError, match="of integers"):
        read_voice(write_safetensors(tmp_path, cache=CACHE.astype(np.float32)), SHAPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:10], "too few for a voice"),
        (lambda c: b"RIFF" + c[4:], "a voice begins with 0x50506558 and version 1, found 0x46464952 and 1"),
        (lambda c: c[:4] + b"\2" + c[5:], "found 0x50506558 and 2"),
        (lambda c: c[:40], "ends inside its tokens"),
        (lambda c: c[:8] + b"\xff" * 8 + c[16:], "ends inside its tokens"),
        (lambda c: c[:-1], "6 rows of 4 float32 are 96 bytes, found 95"),
        (lambda c: c + b"x", "found 97"),
    ],
)
def test_a_broken_bin_is_refused(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    path = write_bin(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message):
        read_voice(path, SHAPE)


@pytest.mark.parametrize("write", WRITERS)
def test_no_damage_does_more_than_be_refused(
    tmp_path_factory: pytest.TempPathFactory, write: Callable[[Path], Path]
) -> None:
    path = write(tmp_path_factory.mktemp("voice"))
    content = path.read_bytes()

    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            broken = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            at = data.draw(st.integers(0, len(content) - 1))
            broken = content[:at] + data.draw(st.binary(min_size=1, max_size=8)) + content[at + 1 :]
        path.write_bytes(broken)
        with suppress(CheckpointError):
            assert read_voice(path, SHAPE, "V").embeddings.shape[1] == 4

    damaged()
