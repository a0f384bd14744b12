"""A checkpoint comes from the Hub whole and checked, goes on where it was cut off, and says why it does not come."""

from __future__ import annotations

import io
import json
import shutil
import socket
import tarfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from model_repository.checkpoint.folder import LM_FILE, MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.checkpoint.hub.download import Downloaded, download_checkpoint, licence_note, needed
from model_repository.checkpoint.hub.repository import HubRepository
from model_repository.errors import CheckpointError, DownloadError
from tests.conftest import GOLDEN
from tests.model_repository.checkpoint.fake_hub import COMMIT, REPOSITORY, FakeHub, running

CHECKPOINT = GOLDEN / "checkpoint"
NEEDED = {LM_FILE, MIMI_FILE, TOKENIZER_FILE, "config.json", "voices.tgz", "LICENSE"}


def archive_of(**members: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"voices/{name}.pt")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The golden checkpoint as it would be published, with files a checkpoint does not need."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    files = {name: (CHECKPOINT / name).read_bytes() for name in NEEDED - {"voices.tgz", "LICENSE"}}
    files["voices.tgz"] = archive_of(NATF0=(CHECKPOINT / "voices" / "NATF0.pt").read_bytes())
    files |= {"LICENSE": b"terms", "README.md": b"# PersonaPlex", "dist.tgz": bytes(9), "../escape.safetensors": b"x"}
    with running(FakeHub(files)) as hub:
        yield hub


def download(hub: FakeHub, out: Path, revision: str = "main") -> Downloaded:
    return download_checkpoint(HubRepository.open(REPOSITORY, revision, hub.url), out)


def test_what_comes_is_the_checkpoint_and_no_more(hub: FakeHub, tmp_path: Path) -> None:
    found = download(hub, tmp_path / "out")
    assert found == Downloaded(REPOSITORY, COMMIT, sum(len(hub.files[name]) for name in NEEDED), 1)
    opened, original = Checkpoint.open(tmp_path / "out"), Checkpoint.open(CHECKPOINT)
    np.testing.assert_array_equal(opened.lm.read("emb.0.weight"), original.lm.read("emb.0.weight"))
    np.testing.assert_array_equal(opened.voice("NATF0").embeddings, original.voice("NATF0").embeddings)
    assert hub.fetched() == NEEDED
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert on_disk == {f"out/{name}" for name in (*NEEDED, "voices/NATF0.pt")}


def test_small_files_come_first_so_that_a_closed_gate_shows_at_once(hub: FakeHub) -> None:
    sizes = [file.size for file in needed(HubRepository.open(REPOSITORY, "main", hub.url))]
    assert sizes == sorted(sizes)


def test_shards_come_with_their_index(hub: FakeHub, tmp_path: Path) -> None:
    tensors = safetensors.numpy.load_file(CHECKPOINT / LM_FILE)
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(sorted(tensors))}
    del hub.files[LM_FILE]
    hub.files[f"{LM_FILE}.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for shard in sorted(set(weight_map.values())):
        hub.files[shard] = safetensors.numpy.save({name: t for name, t in tensors.items() if weight_map[name] == shard})
    download(hub, tmp_path)
    assert {*weight_map.values(), f"{LM_FILE}.index.json"} <= hub.fetched()


def test_a_broken_connection_is_taken_up_where_it_broke(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts[LM_FILE] = 10_000
    download(hub, tmp_path)
    assert [asked for name, asked in hub.asked if name == LM_FILE] == [None, "bytes=8192-"]
    assert (tmp_path / LM_FILE).read_bytes() == hub.files[LM_FILE]


def interrupted(hub: FakeHub, out: Path) -> None:
    def stop(what: str, done: float) -> None:
        if what == LM_FILE and done > sum(len(hub.files[name]) for name in NEEDED) - 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_checkpoint(HubRepository.open(REPOSITORY, "main", hub.url), out, stop)


def test_an_interrupted_download_goes_on_in_the_next_attempt(hub: FakeHub, tmp_path: Path) -> None:
    interrupted(hub, tmp_path)
    assert not (tmp_path / LM_FILE).exists()
    (part,) = tmp_path.glob(f"{LM_FILE}.*.part")
    came = part.stat().st_size
    assert 0 < came < len(hub.files[LM_FILE])
    hub.asked.clear()
    download(hub, tmp_path)
    assert hub.asked == [(LM_FILE, f"bytes={came}-")]
    assert (tmp_path / LM_FILE).read_bytes() == hub.files[LM_FILE]
    assert not list(tmp_path.glob("*.part"))


def test_two_downloads_do_not_write_one_file(hub: FakeHub, tmp_path: Path) -> None:
    refusals: list[str] = []

    def another(what: str, done: float) -> None:
        if what == LM_FILE and not refusals:
            with pytest.raises(DownloadError) as refusal:
                download(hub, tmp_path)
            refusals.append(str(refusal.value))

    download_checkpoint(HubRepository.open(REPOSITORY, "main", hub.url), tmp_path, another)
    assert refusals[0].endswith(".part: another download is writing it; wait for it, or end it")
    assert (tmp_path / LM_FILE).read_bytes() == hub.files[LM_FILE]


def test_what_was_left_of_another_version_is_not_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    interrupted(hub, tmp_path)
    changed = bytearray(hub.files[LM_FILE])
    changed[-1] ^= 1
    hub.files[LM_FILE] = bytes(changed)
    hub.asked.clear()
    download(hub, tmp_path)
    assert hub.asked == [(LM_FILE, None)]
    assert (tmp_path / LM_FILE).read_bytes() == changed


def test_a_part_that_cannot_be_is_begun_again(hub: FakeHub, tmp_path: Path) -> None:
    interrupted(hub, tmp_path)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(bytes(len(hub.files[LM_FILE]) + 1))
    download(hub, tmp_path)
    assert (tmp_path / LM_FILE).read_bytes() == hub.files[LM_FILE]


@pytest.mark.parametrize("name", [LM_FILE, "config.json"])
def test_content_with_another_checksum_is_thrown_away(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.served = {name: bytes(len(hub.files[name]))}
    with pytest.raises(DownloadError, match=rf"^{name}: what came is not what .* it is deleted: run it again"):
        download(hub, tmp_path)
    assert not list(tmp_path.glob(f"{name}*"))


def test_files_that_are_there_are_checked_and_kept(hub: FakeHub, tmp_path: Path) -> None:
    download(hub, tmp_path)
    hub.asked.clear()
    seen: list[str] = []
    download_checkpoint(
        HubRepository.open(REPOSITORY, COMMIT, hub.url), tmp_path, lambda what, _done: seen.append(what)
    )
    assert hub.asked == []
    assert f"checking {LM_FILE}" in seen


@pytest.mark.parametrize("name", [LM_FILE, TOKENIZER_FILE])
def test_a_file_that_is_another_is_not_overwritten(hub: FakeHub, tmp_path: Path, name: str) -> None:
    for content in (b"mine", bytes(len(hub.files[name]))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DownloadError, match=rf"{name} is not the file of nvidia/personaplex-7b-v1 at 0123456789ab"):
            download(hub, tmp_path)
        assert (tmp_path / name).read_bytes() == content


def test_progress_counts_every_byte_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts[LM_FILE] = 10_000
    done: list[float] = []
    download_checkpoint(HubRepository.open(REPOSITORY, "main", hub.url), tmp_path, lambda _what, at: done.append(at))
    assert done == sorted(done)
    assert done[-1] == sum(len(hub.files[name]) for name in NEEDED)


def test_the_disk_is_asked_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(len(hub.files[name]) for name in NEEDED) + 2 * len(hub.files["voices.tgz"])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, total - 1))
    with pytest.raises(DownloadError, match=r"out: .* GB are still to come, the disk has .* GB free"):
        download(hub, tmp_path / "out")
    assert hub.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, total))
    interrupted(hub, tmp_path / "out")
    left = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, total - left))
    assert download(hub, tmp_path / "out").voices == 1


def test_a_closed_gate_says_what_to_do(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated, hub.tokens = True, frozenset({"hf_out", "hf_let-in"})
    with pytest.raises(
        DownloadError, match=r"is gated: accept the licence at https://.*, make a token .* set HF_TOKEN"
    ):
        download(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_out")
    with pytest.raises(DownloadError, match=r"is gated: the token's owner has not been let in: accept the licence at"):
        download(hub, tmp_path)
    assert hub.asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_let-in")
    assert download(hub, tmp_path).voices == 1


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens = frozenset({"hf_secret-in"})
    monkeypatch.setenv("HF_TOKEN", "hf_secret-in")
    download(hub, tmp_path)
    assert hub.authorizations == {"hub": {"Bearer hf_secret-in"}, "cdn": {None}}


def test_a_token_that_is_none_is_said_to_be(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DownloadError, match="does not accept the token in HF_TOKEN"):
        HubRepository.open(REPOSITORY, "main", hub.url)


def test_an_unknown_repository_or_revision_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"there is no repository nvidia/other, or it is private: set HF_TOKEN"):
        HubRepository.open("nvidia/other", "main", hub.url)
    with pytest.raises(DownloadError, match=r"^nvidia/personaplex-7b-v1 has no revision 'v9'$"):
        HubRepository.open(REPOSITORY, "v9", hub.url)
    with pytest.raises(DownloadError, match="'a/b/c' is not the name of a repository: expected OWNER/NAME"):
        HubRepository.open("a/b/c", "main", hub.url)
    hub.tokens = frozenset({"hf_token"})
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with pytest.raises(DownloadError, match="there is no repository nvidia/other, or the token may not see it"):
        HubRepository.open("nvidia/other", "main", hub.url)


def test_no_network_is_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(DownloadError, match=rf"^{url}: cannot be reached or broke off: .*; run it again to go on$"):
            HubRepository.open(REPOSITORY, "main", url)


def test_a_server_that_is_not_well_is_one_line(hub: FakeHub) -> None:
    hub.status = 500
    with pytest.raises(DownloadError, match=rf"^{hub.url}: answered 500 .*not well$"):
        HubRepository.open(REPOSITORY, "main", hub.url)


@pytest.mark.parametrize("page", [b"<html>Welcome</html>", b"[]", b'{"a": 1}', b'{"sha": 1, "siblings": [{"x": 1}]}'])
def test_a_site_that_is_no_hub_is_one_line(hub: FakeHub, page: bytes) -> None:
    hub.page = page
    with pytest.raises(DownloadError, match=rf"^{hub.url}: (does not answer as a Hub does|says nothing of what)"):
        HubRepository.open(REPOSITORY, "main", hub.url)


def test_an_address_that_is_none_is_one_line() -> None:
    for address in ("hub", "http://[", "ftp://127.0.0.1"):
        with pytest.raises(DownloadError):
            HubRepository.open(REPOSITORY, "main", address)


@pytest.mark.parametrize("name", [LM_FILE, MIMI_FILE, TOKENIZER_FILE, "voices.tgz"])
def test_a_repository_that_lacks_a_file_is_refused_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, name: str
) -> None:
    del hub.files[name]
    with pytest.raises(
        DownloadError, match=rf"nvidia/personaplex-7b-v1 at 0123456789ab has no {name}; it has \.\./escape"
    ):
        download(hub, tmp_path)
    assert hub.asked == []


def test_an_archive_that_would_lead_out_is_not_unpacked(hub: FakeHub, tmp_path: Path) -> None:
    hub.files["voices.tgz"] = archive_of(**{"NATF0": b"x", "../../escape": b"x"})
    with pytest.raises(CheckpointError, match="leads out of the archive"):
        download(hub, tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_folder_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="file: File exists"):
        download(hub, tmp_path / "file")


def test_the_licence_is_said() -> None:
    assert "NVIDIA Open Model License: read it at https://huggingface.co/nvidia/personaplex-7b-v1" in licence_note(
        REPOSITORY
    )
    assert (
        licence_note("a/b")
        == "the weights of a/b come under a licence of their own: read it at https://huggingface.co/a/b"
    )
