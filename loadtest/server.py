"""Build small models and run `personaplex serve` as a process of its own, from this source tree or another one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.cli.console import CommandError
from loadtest.paths import ROOT
from loadtest.plan import address

STOP_SECONDS = 30.0
READY_SECONDS = 120.0
POLL_SECONDS = 0.1
_BATCH_SUM, _BATCH_COUNT = (f"personaplex_batch_conversations_{kind}" for kind in ("sum", "count"))


class NoServer(CommandError):  # noqa: N818 - the message states the reason
    """There is no server to load."""


@dataclass(frozen=True)
class Server:
    """url: of the HTTP port. grpc: HOST:PORT. pid: of the gateway, if `started` runs it on this machine."""

    url: str
    grpc: str
    pid: int | None = None

    def shared_frames(self) -> tuple[float, float]:
        """Sum of batch sizes and number of batches so far: their ratio is the mean temporal batch. Raises NoServer."""
        found = dict.fromkeys((_BATCH_SUM, _BATCH_COUNT), 0.0)
        try:
            verify = address(self.url).tls or False
            page = httpx.get(f"{self.url}/metrics", timeout=5, trust_env=False, verify=verify).text
        except httpx.HTTPError as error:
            raise NoServer(f"{self.url}/metrics: {error}") from None
        for line in page.splitlines():
            name, _, value = line.partition(" ")
            if name in found:
                found[name] = float(value)
        return found[_BATCH_SUM], found[_BATCH_COUNT]


def build_tiny(folder: Path, slots: int) -> Path:
    """Build the small speaking model for `slots` conversations; return the repository. Raises NoServer."""
    checkpoint = (folder / "checkpoint").resolve()
    _personaplex(ROOT, "tiny", str(checkpoint), "--force")
    return _built(checkpoint, folder, slots, ROOT)


def build_random(folder: Path, slots: int, tree: Path = ROOT) -> Path:
    """Build tiny models of random weights with the code of `tree`; return the repository. Raises NoServer."""
    checkpoint = (folder / "checkpoint").resolve()
    _personaplex(ROOT, "tiny", str(checkpoint), "--random", "--force")
    return _built(checkpoint, folder, slots, tree)


def _built(checkpoint: Path, folder: Path, slots: int, tree: Path) -> Path:
    models = folder / "models"
    _personaplex(tree, "build", str(checkpoint), str(models.resolve()), "--slots", str(slots), "--force")
    return models


@contextmanager
def started(models: Path, log: Path, tree: Path = ROOT) -> Iterator[Server]:
    """Run `personaplex serve` of `tree` on free ports of this machine; stop it on exit. Raises NoServer."""
    port, grpc_port = _free_ports(2)
    server = f"http://127.0.0.1:{port}"
    command = _command("serve", str(models.resolve()), "--port", str(port), "--grpc-port", str(grpc_port))
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=tree, env=environment(tree)) as process,
    ):
        try:
            _wait_until_ready(server, process, log)
            yield Server(server, f"127.0.0.1:{grpc_port}", process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                # The first signal lets conversations finish; the second one ends them.
                process.terminate()


def environment(tree: Path = ROOT) -> dict[str, str]:
    """This process's variables without those of another server (Triton, keys, certificate); imports from `tree`."""
    others = {f"PERSONAPLEX_{name}" for name in ("TRITON_URL", "API_KEYS", "TLS_CERTIFICATE", "TLS_KEY")}
    inherited = {name: value for name, value in os.environ.items() if name not in others}
    return inherited | {"PYTHONPATH": str(tree.resolve())}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", *arguments]


def _personaplex(tree: Path, *arguments: str) -> None:
    done = subprocess.run(
        _command(*arguments), cwd=tree, env=environment(tree), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NoServer(f"personaplex {arguments[0]} in {tree} failed: {done.stderr.strip() or done.stdout.strip()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NoServer(f"the server ended while starting; see {log}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(POLL_SECONDS)
    raise NoServer(f"the server was not ready after {READY_SECONDS:g} s; see {log}")
