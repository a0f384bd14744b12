"""A repository on the Hugging Face Hub at one commit: its files, and fetching one so that a cut costs little.

`huggingface_hub` asks and streams; it starts a file over in every process, so what is on disk is kept track of here.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars  # type: ignore[attr-defined]

from model_repository.errors import DownloadError

_SITE = "https://huggingface.co"
_BLOCK = 2**20
_SECONDS = 30.0
"""How long the Hub may take to say what a repository holds."""

Report = Callable[[int], None]
"""Called with the bytes of a file that are done."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository: its size in bytes, and its sha256 (large files) or else its git object's sha1."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def is_at(self, path: Path, report: Report | None = None) -> bool:
        """Whether the file at `path` has this size and checksum; one without either is believed."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            digest, expected = hashlib.sha256(), self.sha256
        elif self.git_sha1 is not None:
            digest, expected = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False), self.git_sha1
        else:
            return True
        done = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                done += len(block)
                if report:
                    report(done)
        return digest.hexdigest() == expected


@dataclass(frozen=True)
class HubRepository:
    """A repository at the commit that `revision` was when it was opened."""

    name: str
    commit: str
    files: Mapping[str, HubFile]
    endpoint: str

    @classmethod
    def open(cls, name: str, revision: str, endpoint: str | None = None) -> HubRepository:
        """Asks the Hub (default: `HF_ENDPOINT`) what `name` holds at `revision`, a branch, tag or commit.

        The token is `HF_TOKEN`, or the one `hf auth login` left. Raises `DownloadError`, in one line.
        """
        where = endpoint or constants.ENDPOINT
        with _explained(name, revision, where):
            info = HfApi(endpoint=where).model_info(name, revision=revision, files_metadata=True, timeout=_SECONDS)
        if not info.sha or not info.siblings:
            raise DownloadError(f"{where}: says nothing of what {name} holds at {revision!r}")
        files = {}
        for sibling in info.siblings:
            if sibling.size is not None:
                sha256 = sibling.lfs.sha256 if sibling.lfs else None
                git_sha1 = None if sibling.lfs else sibling.blob_id
                files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.size, sha256, git_sha1)
        return cls(name, info.sha, files, where)

    def part(self, file: HubFile, folder: Path) -> Path:
        """Where what has come of a file lies until it is whole; another version of it has another."""
        version = (file.sha256 or file.git_sha1 or self.commit)[:12]
        return folder / f"{file.name}.{version}.part"

    def fetch(self, file: HubFile, folder: Path, report: Report) -> None:
        """Writes the file to `folder`/NAME, going on with what an earlier attempt left, and checks it.

        Raises `DownloadError`, in one line; what has come by then stays for the next attempt, unless it is wrong.
        """
        part = self.part(file, folder)
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        disable_progress_bars()
        url = hf_hub_url(self.name, file.name, revision=self.commit, endpoint=self.endpoint)
        with _explained(self.name, self.commit, self.endpoint), part.open("ab") as content:
            try:
                fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DownloadError(f"{part}: another download is writing it; wait for it, or end it") from None
            http_get(
                url,
                _Counted(content, report),  # type: ignore[arg-type]
                resume_size=part.stat().st_size,
                headers=build_hf_headers(),
                expected_size=file.size,
            )
            content.flush()
            if not file.is_at(part):
                part.unlink()
                what = f"{file.name}: what came is not what {self.name} holds"
                raise DownloadError(f"{what}; it is deleted: run it again")
            part.replace(folder / file.name)


class _Counted:
    """A file that reports how far it has been written."""

    def __init__(self, file: Any, report: Report) -> None:
        self._file = file
        self._report = report
        report(file.tell())

    def write(self, content: bytes) -> int:
        count: int = self._file.write(content)
        self._report(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _explained(name: str, revision: str, endpoint: str) -> Iterator[None]:
    """What went wrong in words that say what to do about it."""
    try:
        yield
    except GatedRepoError:
        page = f"{_SITE}/{name}"
        todo = (
            f"the token's owner has not been let in: accept the licence at {page}"
            if get_token()
            else f"accept the licence at {page}, make a token at {_SITE}/settings/tokens and set HF_TOKEN to it"
        )
        raise DownloadError(f"{name} is gated: {todo}") from None
    except RevisionNotFoundError:
        raise DownloadError(f"{name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        hint = (
            "or the token may not see it" if get_token() else "or it is private: set HF_TOKEN to a token that sees it"
        )
        raise DownloadError(f"{endpoint}: there is no repository {name}, {hint}") from None
    except RemoteEntryNotFoundError:
        raise DownloadError(f"{name} at {revision} lacks a file that it lists") from None
    except HFValidationError:
        raise DownloadError(f"{name!r} is not the name of a repository: expected OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise DownloadError("HF_HUB_OFFLINE is set: nothing is fetched") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise DownloadError(f"{endpoint}: does not accept the token in HF_TOKEN") from None
        said = error.server_message or error.response.reason_phrase
        raise DownloadError(f"{endpoint}: answered {status} {' '.join(said.split())}"[:300]) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise DownloadError(f"{endpoint}: cannot be reached or broke off: {reason}; run it again to go on") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise DownloadError(f"{error.filename or name}: {reason}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{endpoint}: does not answer as a Hub does ({type(error).__name__})") from error
