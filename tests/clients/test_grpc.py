"""The examples of the documentation for gRPC that need a program or a compiler: grpcurl and C++."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import soundfile

from tests.clients.conftest import QUESTION, python_of
from tests.clients.test_clients import CLIENTS_PAGE
from tests.gateway.openai.conftest import Serve
from tests.gateway.websocket.conftest import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def example(language: str, word: str) -> str:
    """The example that has the word."""
    blocks = re.findall(rf"```{language}\n(.*?)```", CLIENTS_PAGE.read_text(), re.DOTALL)
    (text,) = [block for block in blocks if word in block]
    return str(text)


async def run(text: str, server: Server, folder: Path, path: Path | None = None) -> str:
    """Run commands beside `question.wav`, with the addresses of the server; return what they print."""
    shutil.copy(QUESTION, folder / "question.wav")
    process = await asyncio.create_subprocess_exec(
        "bash", "-ec", at(server, text), cwd=folder, stdout=-1, stderr=-1,
        env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-4000:]
    return output.decode()


def at(server: Server, text: str) -> str:
    grpc = f"127.0.0.1:{server.app.state.grpc.port}"
    return text.replace("127.0.0.1:8998", server.url.removeprefix("ws://")).replace("127.0.0.1:8999", grpc)


async def test_grpcurl(serve: Serve, tmp_path: Path) -> None:
    async with serve() as server:
        answer = json.loads(await run(example("sh", "grpcurl"), server, tmp_path, python_of("grpcurl").parent))
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(answer["audio"])))
    assert (rate, len(sound)) == (24_000, 1920 * answer["frames"])
    assert answer["transcript"]
    assert answer["seed"] == "1"


async def test_a_client_in_cpp(serve: Serve, tmp_path: Path) -> None:
    if not (shutil.which("g++") and shutil.which("grpc_cpp_plugin")):
        pytest.skip("gRPC for C++ is not installed: .ci/grpc installs it")
    async with serve() as server:
        (tmp_path / "respond.cc").write_text(at(server, example("cpp", "RespondRequest")))
        transcript = await run(example("sh", "protoc"), server, tmp_path)
    assert transcript.strip()
    assert soundfile.info(tmp_path / "answer.wav").duration > 6
