"""A checkpoint folder opens only if everything is there with its shape; otherwise the message names what is not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from model_repository.checkpoint import folder as folder_module
from model_repository.checkpoint.folder import LM_FILE, MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.checkpoint.torch_writer import write_torch_tensors
from model_repository.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"

VOICE = GOLDEN / "checkpoint" / "voices" / "NATF0.pt"


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


@pytest.mark.parametrize("name", [LM_FILE, MIMI_FILE, TOKENIZER_FILE])
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


def test_without_a_config_the_published_geometry_is_expected(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"wrong shape of tensor 'emb.0.weight': expected \[2049, 4096\], got"):
        Checkpoint.open(checkpoint_copy)


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


def test_a_missing_tensor_is_named(checkpoint_copy: Path) -> None:
    rewrite(checkpoint_copy / MIMI_FILE, lambda tensors: tensors.pop("downsample.conv.conv.conv.weight"))
    with pytest.raises(CheckpointError, match=rf"{MIMI_FILE}: missing tensor 'downsample.conv.conv.conv.weight'"):
        Checkpoint.open(checkpoint_copy)


def test_a_file_cut_short_is_named(checkpoint_copy: Path) -> None:
    content = (checkpoint_copy / LM_FILE).read_bytes()
    (checkpoint_copy / LM_FILE).unlink()
    (checkpoint_copy / LM_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '.*': its data ends at byte"):
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
    with pytest.raises(CheckpointError, match=r"^voices/BAD\.pt: truncated"):
        Checkpoint.open(checkpoint_copy).voice("BAD")


def test_a_voice_without_its_tensors_is_named(checkpoint_copy: Path) -> None:
    write_torch_tensors(checkpoint_copy / "voices" / "BAD.pt", {"embeddings": np.zeros((3, 1, 1, 32), np.float32)})
    with pytest.raises(CheckpointError, match=r"^voices/BAD\.pt: no tensor 'cache'; it holds \['embeddings'\]"):
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
    with pytest.raises(CheckpointError, match=r"^voices/NATM1\.pt: "):
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
    monkeypatch.setattr(folder_module, "_MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"'voices/B\.pt' is larger than voices are"):
        Checkpoint.open(archived)
    monkeypatch.setattr(folder_module, "MAX_FILE_BYTES", 500)
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
