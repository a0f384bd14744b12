"""A checkpoint's voices are its files of voices, or those in its archive, which is read without being trusted."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.voices import voice_archive
from model_repository.checkpoint.voices.voice_archive import unpack_voices
from model_repository.errors import CheckpointError
from model_repository.synthetic.torch_writer import write_torch_tensors

GOLDEN = Path(__file__).parents[2] / "golden"

VOICE = GOLDEN / "checkpoint" / "voices" / "NATF0.pt"


@pytest.mark.parametrize("name", ["NATF9", "../voices/NATF0", "/etc/passwd", "", "NATF0.pt"])
def test_an_unknown_voice_says_which_exist(golden_checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"no voice .*; it has NATF0"):
        golden_checkpoint.voice(name)
    with pytest.raises(KeyError):
        golden_checkpoint.voices[name]


def test_a_voice_file_with_a_strange_name_is_refused(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "voices" / "my voice.pt").write_bytes(VOICE.read_bytes())
    with pytest.raises(CheckpointError, match="voice name 'my voice'"):
        Checkpoint.open(checkpoint_copy)


def test_a_tampered_voice_is_named(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "voices" / "BAD.pt").write_bytes(VOICE.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"voices/BAD\.pt: truncated"):
        Checkpoint.open(checkpoint_copy).voice("BAD")


def test_a_voice_without_its_tensors_is_named(checkpoint_copy: Path) -> None:
    write_torch_tensors(checkpoint_copy / "voices" / "BAD.pt", {"embeddings": np.zeros((3, 1, 1, 32), np.float32)})
    with pytest.raises(CheckpointError, match=r"voices/BAD\.pt: no tensor 'cache'; it holds \['embeddings'\]"):
        Checkpoint.open(checkpoint_copy).voice("BAD")


def write_tar(path: Path, *members: tuple[str, bytes | None]) -> None:
    """A gzipped tar of files; content None makes a folder."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))


@pytest.fixture
def archived(checkpoint_copy: Path) -> Path:
    """The checkpoint copy with no voices folder: a test puts `voices.tgz` there."""
    (checkpoint_copy / "voices" / "NATF0.pt").unlink()
    (checkpoint_copy / "voices").rmdir()
    return checkpoint_copy


def test_voices_are_read_from_the_archive_without_unpacking_it(archived: Path, golden_checkpoint: Checkpoint) -> None:
    content = VOICE.read_bytes()
    members = [("voices", None), ("voices/NATM1.pt", b"junk"), ("voices/NATF0.pt", content), ("voices/._NATF0.pt", b"")]
    write_tar(archived / "voices.tgz", *members, ("voices/README", b"text"))
    before = set(archived.rglob("*"))
    checkpoint = Checkpoint.open(archived)
    assert list(checkpoint.voices) == ["NATF0", "NATM1"]
    voice, expected = checkpoint.voice("NATF0"), golden_checkpoint.voice("NATF0")
    np.testing.assert_array_equal(voice.embeddings, expected.embeddings)
    np.testing.assert_array_equal(voice.columns, expected.columns)
    with pytest.raises(CheckpointError, match=r"voices\.tgz: NATM1\.pt: truncated"):
        checkpoint.voice("NATM1")
    assert set(archived.rglob("*")) == before


@pytest.mark.parametrize("name", ["/voices/A.pt", "../A.pt", "voices/../../A.pt", "voices\\..\\A.pt", "/etc/passwd"])
def test_a_member_that_leads_out_of_the_archive_is_refused(archived: Path, name: str) -> None:
    write_tar(archived / "voices.tgz", ("voices/NATF0.pt", b"x"), (name, b"x"))
    with pytest.raises(CheckpointError, match="leads out of the archive"):
        Checkpoint.open(archived)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(archived: Path, kind: bytes) -> None:
    with tarfile.open(archived / "voices.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("voices/NATF0.pt")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(CheckpointError, match=r"'voices/NATF0\.pt' is neither a file nor a folder"):
        Checkpoint.open(archived)


def test_oversize_members_are_refused(archived: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(archived / "voices.tgz", ("voices/A.pt", bytes(600)), ("voices/B.pt", bytes(600)))
    monkeypatch.setattr(voice_archive, "_MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"'voices/B\.pt' is larger than voices are"):
        Checkpoint.open(archived)
    monkeypatch.setattr(voice_archive, "MAX_FILE_BYTES", 500)
    with pytest.raises(CheckpointError, match=r"'voices/A\.pt' is larger than voices are"):
        Checkpoint.open(archived)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("voices/A.pt", b"x"), ("A.pt", b"y")], "voice A is there twice"),
        ([("voices/a b.pt", b"x")], "voice name 'a b'"),
        ([("voices", None)], r"voices\.tgz: holds no voice"),
    ],
)
def test_an_archive_that_is_not_one_of_voices_is_refused(
    archived: Path, members: list[tuple[str, bytes | None]], message: str
) -> None:
    write_tar(archived / "voices.tgz", *members)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(archived)


def test_a_broken_archive_is_named(archived: Path) -> None:
    write_tar(archived / "voices.tgz", ("voices/NATF0.pt", VOICE.read_bytes()))
    content = (archived / "voices.tgz").read_bytes()
    for broken in (b"", b"text", content[: len(content) // 2], content[:40] + bytes(20) + content[60:]):
        (archived / "voices.tgz").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"voices\.tgz: "):
            Checkpoint.open(archived)


def test_voices_in_every_form_lie_side_by_side(checkpoint_copy: Path, golden_checkpoint: Checkpoint) -> None:
    voice, folder = golden_checkpoint.voice("NATF0"), checkpoint_copy / "voices"
    voice.save(folder / "B.safetensors")
    (folder / "C.bin").write_bytes(b"junk")
    (folder / "D.embeddings.bin").write_bytes(b"junk")
    (folder / "B.embeddings.bin").write_bytes(b"junk")
    (checkpoint_copy / "E.embeddings.bin").write_bytes(b"junk")
    opened = Checkpoint.open(checkpoint_copy)
    assert list(opened.voices) == ["B", "C", "D", "E", "NATF0"]
    np.testing.assert_array_equal(opened.voice("B").embeddings, voice.embeddings)
    with pytest.raises(CheckpointError, match=r"voices/C\.bin: 4 bytes are too few for a voice"):
        opened.voice("C")
    with pytest.raises(CheckpointError, match=r"checkpoint/E\.cache\.json: cannot be read"):
        opened.voice("E")


def test_an_empty_folder_gives_way_to_the_archive(archived: Path) -> None:
    (archived / "voices").mkdir()
    write_tar(archived / "voices.tgz", ("voices/NATF0.pt", VOICE.read_bytes()))
    assert list(Checkpoint.open(archived).voices) == ["NATF0"]


def test_an_archive_is_unpacked_voice_by_voice(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "voices.tgz", ("voices", None), ("voices/A.pt", b"a"), ("voices/B.pt", b"b"), ("voices/x", b"x")
    )
    assert unpack_voices(tmp_path / "voices.tgz", tmp_path / "out" / "voices") == ["A", "B"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "out/voices").iterdir()} == {
        "A.pt": b"a",
        "B.pt": b"b",
    }


def test_nothing_is_unpacked_from_an_archive_with_a_member_that_leads_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "voices.tgz", ("voices/A.pt", b"a"), ("voices/../../B.pt", b"b"))
    with pytest.raises(CheckpointError, match="leads out of the archive"):
        unpack_voices(tmp_path / "voices.tgz", tmp_path / "voices")
    assert not (tmp_path / "voices").exists()
