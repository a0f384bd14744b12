"""The path of one user frame through the gateway is the one that docs/architecture.md lists."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
import pytest

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.app import create_app
from gateway.manifest import Manifest
from gateway.settings import Settings
from tests.gateway.engine.triton import stand_in

ROOT = Path(__file__).parents[2]
MOST_FUNCTIONS = 18


def documented() -> set[str]:
    """`FILE FUNCTION` of each line of the list."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    return {f"{file} {name}" for file, name in re.findall(r"^\d+\. `(\S+\.py)` `(\S+)`", page, re.MULTILINE)}


class Calls:
    """Functions of the gateway that are called while it is active; a comprehension is part of its function."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._package = f"{ROOT / 'gateway'}/"

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self._package) and "<locals>" not in code.co_qualname:
            self.names.add(f"{code.co_filename.removeprefix(self._package)} {code.co_qualname}")


async def test_a_user_frame_of_a_grpc_call_passes_the_documented_functions(
    manifest: Manifest, models: Path, monkeypatch: pytest.MonkeyPatch
):
    triton = stand_in.Server()
    listening, port = await triton.listen()
    app = create_app(Settings(models=models, triton_url=f"127.0.0.1:{port}", grpc_port=0), manifest=manifest)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        target = f"127.0.0.1:{app.state.grpc.port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        call = personaplex_pb2_grpc.PersonaPlexStub(channel).Converse()

        async def frame() -> None:
            await call.write(pb.ConverseRequest(audio=np.zeros(1920, "<i2").tobytes()))
            while (await call.read()).WhichOneof("message") != "audio":
                pass
            await asyncio.sleep(0.08)

        await call.write(pb.ConverseRequest(start=pb.Start()))
        while (await call.read()).WhichOneof("message") != "audio":
            pass
        # Request heads and answers' layouts are cached after the first frames.
        for _ in range(3):
            await frame()
        paths = []
        for _ in range(4):
            calls = Calls()
            sys.setprofile(calls)
            try:
                await frame()
            finally:
                sys.setprofile(None)
            paths.append(calls.names)
        call.cancel()
    await triton.stop(listening)
    # What runs about once a second, such as the check of limits, is not in every frame's path.
    path = set.intersection(*paths)
    assert path == documented()
    assert len(path) <= MOST_FUNCTIONS
