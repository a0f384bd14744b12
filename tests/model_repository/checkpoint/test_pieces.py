"""Raw pieces of a file read as the file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repository.checkpoint.weights.pieces import Pieces, pieces_of, whole_name
from model_repository.errors import CheckpointError


def write(folder: Path, *contents: bytes) -> list[Path]:
    paths = [folder / f"a.gguf.shard-{index:02d}" for index in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@given(
    st.lists(st.binary(max_size=20), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90))),
)
def test_every_read_gives_what_the_whole_would(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], reads: list[tuple[int, int]]
) -> None:
    whole = io.BytesIO(b"".join(contents))
    with io.BufferedReader(Pieces(write(tmp_path_factory.mktemp("pieces"), *contents)), 8) as file:
        assert file.seek(0, io.SEEK_END) == len(whole.getvalue())
        for begin, count in reads:
            whole.seek(begin)
            file.seek(begin)
            assert file.read(count) == whole.read(count)


def test_all_pieces_are_found_from_any(tmp_path: Path) -> None:
    paths = write(tmp_path, *[b"x"] * 12)
    (tmp_path / "b.gguf.shard-00").write_bytes(b"y")
    assert pieces_of(paths[0]) == pieces_of(paths[7]) == paths
    assert whole_name(paths[3]) == "a.gguf"


def test_a_whole_file_is_its_only_piece(tmp_path: Path) -> None:
    assert pieces_of(tmp_path / "a.gguf") == [tmp_path / "a.gguf"]
    assert whole_name(tmp_path / "a.gguf") is None


@pytest.mark.parametrize("gone", [0, 2])
def test_a_piece_missing_between_others_is_named(tmp_path: Path, gone: int) -> None:
    paths = write(tmp_path, *[b"x"] * 4)
    paths[gone].unlink()
    with pytest.raises(CheckpointError, match=rf"a\.gguf\.shard-0{gone} is missing, a piece of a\.gguf"):
        pieces_of(paths[3])


def test_a_piece_under_two_names_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, b"x")
    (tmp_path / "a.gguf.shard-0").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"piece 0 of a\.gguf is there twice"):
        pieces_of(tmp_path / "a.gguf.shard-00")
