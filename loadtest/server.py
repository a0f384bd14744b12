"""The server of a run: tiny models built, the service started as a process of its own; or one that runs elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

STOP_SECONDS = 30.0
_READY = re.compile(r"PersonaPlex is ready: (\S+)")
_GRPC = re.compile(r" +gRPC +(\S+)")
_LAST = re.compile(r" +Triton ")
_BATCH_SUM, _BATCH_COUNT = (f"personaplex_shared_frame_conversations_{what}" for what in ("sum", "count"))


class NoServer(Exception):  # noqa: N818 - says what is the matter
    """There is nothing to load."""


@dataclass(frozen=True)
class Server:
    """url: of the HTTP port. grpc: HOST:PORT. pid: of the gateway, where it runs on this machine and is ours."""

    url: str
    grpc: str
    pid: int | None = None

    def shared_frames(self) -> tuple[float, float]:
        """Conversations in shared frames, and shared frames, so far: their ratio is the mean temporal batch."""
        found = dict.fromkeys((_BATCH_SUM, _BATCH_COUNT), 0.0)
        try:
            page = httpx.get(f"{self.url}/metrics", timeout=5, trust_env=False).text
        except httpx.HTTPError as error:
            raise NoServer(f"{self.url}/metrics: {error}") from None
        for line in page.splitlines():
            name, _, value = line.partition(" ")
            if name in found:
                found[name] = float(value)
        return found[_BATCH_SUM], found[_BATCH_COUNT]


def build_tiny(folder: Path, slots: int) -> Path:
    """Tiny models for `slots` conversations, always anew: it takes seconds, and old ones may not fit the code."""
    from gateway.cli.build import write_models, write_tiny

    write_tiny(folder / "checkpoint", force=True)
    write_models(folder / "checkpoint", folder / "models", slots=slots, force=True)
    return folder / "models"


@contextmanager
def started(models: Path, log: Path) -> Iterator[Server]:
    """`personaplex serve` on free ports, stopped on the way out. Raises NoServer."""
    command = [sys.executable, "-m", "gateway.cli", "serve", str(models), "--port", "0", "--grpc-port", "0"]
    with (
        log.open("w") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True, env=_environment()) as process,
    ):
        try:
            yield _announced(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # The first signal lets calls go on for a while; the second does not.
                process.terminate()


def _environment() -> dict[str, str]:
    """Ours, less what is meant for another server: its Triton, its keys, its certificate."""
    others = {f"PERSONAPLEX_{name}" for name in ("TRITON_URL", "API_KEYS", "TLS_CERTIFICATE", "TLS_KEY")}
    return {name: value for name, value in os.environ.items() if name not in others}


def _announced(process: subprocess.Popen[str], log: Path) -> Server:
    url = grpc = ""
    assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
    for line in process.stdout:
        if found := _READY.match(line):
            url = found[1]
        elif found := _GRPC.match(line):
            grpc = found[1]
        elif _LAST.match(line):
            return Server(url, grpc, process.pid)
    raise NoServer(f"the server ended while starting; {log} says why")
