"""The archive `voices.tgz` of the published release: what is in it, without unpacking it, and without trusting it."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from model_repository.checkpoint.voices.voice import check_voice_name
from model_repository.checkpoint.weights.torch_file import MAX_FILE_BYTES
from model_repository.errors import CheckpointError

VOICES_ARCHIVE = "voices.tgz"

_MAX_ARCHIVE_BYTES = 2**31
"""Unpacked size up to which a `voices.tgz` is read; the published one holds 18 voices of about half a megabyte."""


def unpack_voices(archive: Path, folder: Path) -> list[str]:
    """Writes every voice of the archive as `folder`/NAME.pt; the names. Raises `CheckpointError` as `archived_voices`.

    The whole archive is looked at before the first file is written.
    """
    names = [name for name, _ in archived_voices(archive)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in archived_voices(archive, names):
        (folder / f"{name}.pt").write_bytes(content)
    return names


def archived_voices(archive: Path, wanted: Collection[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Names of the voices in the archive, and the content of the wanted ones (of the others nothing).

    Nothing is unpacked to disk. Raises `CheckpointError` for a member that an honest archive of voices has not:
    a link, a device, a path that leads out of it, a voice twice, or more bytes than voices take.
    """
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                where = f"{archive}: member {member.name[:80]!r}"
                member_path = PurePosixPath(member.name)
                if member_path.is_absolute() or ".." in member_path.parts or "\\" in member.name:
                    raise CheckpointError(f"{where} leads out of the archive")
                if not member.isfile() and not member.isdir():
                    raise CheckpointError(f"{where} is neither a file nor a folder")
                total += member.size
                if member.size > MAX_FILE_BYTES or total > _MAX_ARCHIVE_BYTES:
                    raise CheckpointError(f"{where} is larger than voices are")
                if member.isdir() or member_path.suffix != ".pt" or member_path.name.startswith("."):
                    continue
                name = check_voice_name(member_path.stem)
                if name in seen:
                    raise CheckpointError(f"{where}: voice {name} is there twice")
                seen.add(name)
                file = tar.extractfile(member) if name in wanted else None
                yield name, file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CheckpointError(f"{archive}: truncated or not a gzipped tar archive: {error}") from error
