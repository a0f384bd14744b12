"""The application as a whole: made from settings, closed with its lifespan."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.engine.triton.backend import TritonBackend
from gateway.errors import RepositoryError
from gateway.manifest import Manifest
from gateway.settings import Settings


def test_settings_alone_make_an_app_on_triton(models: Path):
    app = create_app(Settings(models=models, triton_url="triton:9001"))
    runtime = app.state.runtime
    assert isinstance(runtime.backend, TritonBackend)
    assert runtime.backend.url == "triton:9001"
    assert runtime.manifest.dim == 32


def test_a_folder_that_is_no_repository_makes_no_app(tmp_path: Path):
    with pytest.raises(RepositoryError, match="is not a built repository"):
        create_app(Settings(models=tmp_path))


async def test_the_backend_is_closed_when_the_app_ends(
    models: Path, manifest: Manifest, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
):
    closed = []

    async def close() -> None:
        closed.append(True)

    monkeypatch.setattr(engine, "close", close)
    app = create_app(Settings(models=models), engine, manifest)
    async with app.router.lifespan_context(app):
        assert closed == []
    assert closed == [True]
