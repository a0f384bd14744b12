"""Kokoro's styles come from a package whose content is known."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_repository.synthetic.speaking import engines

STYLE = np.arange(2 * 256, dtype=np.float32).reshape(2, 256)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An npm package with one style, which takes the place of Kokoro's."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("package/voices/af_heart.bin", STYLE.tobytes()), ("package/README.md", b"# Kokoro")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(engines, "_STYLES_URL", path.as_uri())
    monkeypatch.setattr(engines, "_STYLES_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    engines._kokoro_styles.cache_clear()
    yield path
    engines._kokoro_styles.cache_clear()


def test_styles_are_read_from_the_package(package: Path) -> None:
    styles = engines._kokoro_styles()
    assert list(styles) == ["af_heart"]
    np.testing.assert_array_equal(styles["af_heart"], STYLE)


def test_another_package_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(OSError, match="is not the package with the SHA-256"):
        engines._kokoro_styles()
