"""Gateways in processes of their own, a name server that knows them, and HAProxy with the chart's configuration."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.deploy.helm.chart import SHARED, render

ROOT = Path(__file__).parents[2]
HOST = "calls-personaplex-pods.voice.svc.cluster.local"
"""The name of the pods' headless service in the rendered chart."""
_START_S = 300.0
"""Time in which pods start, on a machine with other work."""

_AGE_S = 0.005
"""Age of what threads have waited, from which on it is read again: calls of one burst begin with one reading."""


@dataclass
class Pod:
    """One gateway. `taken`: its slots in use, by time; `usable`: from when to when it takes calls."""

    address: str
    slots: int
    pid: int = 0
    taken: list[tuple[float, int]] = field(default_factory=list)
    usable: tuple[float, float] = (inf, inf)

    def calls_since(self, at: float) -> int:
        """Number of calls that have held one of its slots, at `at` or later."""
        before = [taken for when, taken in self.taken if when <= at]
        changes = [before[-1] if before else 0, *(taken for when, taken in self.taken if when > at)]
        return changes[0] + sum(max(after - earlier, 0) for earlier, after in pairwise(changes))

    def stop_using(self) -> None:
        """It takes no calls from now on."""
        self.usable = (self.usable[0], monotonic())

    def drain(self) -> None:
        """Begin a drain."""
        os.kill(self.pid, signal.SIGUSR1)
        self.stop_using()

    def kill(self) -> None:
        """Kill it as the kernel does when memory is short."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop_using()


class Fleet:
    """The pods, and the servers in front of them."""

    def __init__(self, models: Path, slots: int, delay: float, settings: dict[str, Any]) -> None:
        self.pods: list[Pod] = []
        self.names = NameServer()
        self.published: list[Callable[[list[str]], None]] = []
        """Called with the addresses that the name stands for when they change."""
        self.waits = ProcessorWaits([os.getpid()])
        """Of the pods, of the balancer and of the callers."""
        self._slots = slots
        # Calls that are held send no audio, and last as long as the test.
        settings = {"drain_seconds": 3600, "idle_seconds": 3600, **settings}
        self._arguments = (str(models), str(delay), json.dumps(settings))
        # Addresses of this run alone: others on this machine may run the same test.
        self._network = f"127.{random.randrange(1, 255)}.{random.randrange(256)}"
        self._parent: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None]

    async def start(self, count: int = 1) -> list[Pod]:
        """Start pods. They are not known by name yet."""
        if self._parent is None:
            self._parent = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", str(ROOT / "tests/fleet/pods.py"), *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                start_new_session=True,
            )
            self._reading = asyncio.create_task(self._read())
        added = [Pod(f"{self._network}.{len(self.pods) + number + 1}", self._slots) for number in range(count)]
        self.pods += added
        assert self._parent.stdin is not None
        self._parent.stdin.writelines(f"{pod.address}\n".encode() for pod in added)
        async with asyncio.timeout(_START_S):
            while not all(pod.taken for pod in added):
                assert self._parent.returncode is None
                await asyncio.sleep(0.02)
        self.waits.processes += [pod.pid for pod in added]
        return added

    async def _read(self) -> None:
        """Read what the pods print until all have ended."""
        assert self._parent is not None
        assert self._parent.stdout is not None
        async for line in self._parent.stdout:
            entry = json.loads(line)
            (pod,) = (pod for pod in self.pods if pod.address == entry["address"])
            pod.pid = entry["pid"]
            pod.taken.append((entry["at"], entry["taken"]))

    def publish(self, *pods: Pod) -> None:
        """Set the pods that the name stands for."""
        self.names.addresses[:] = [pod.address for pod in pods]
        for tell in self.published:
            tell(self.names.addresses)

    def free(self) -> list[tuple[float, int]]:
        """Return the number of free slots of all usable pods, from each time on."""
        changes: list[tuple[float, int, int]] = []
        for number, pod in enumerate(self.pods):
            begin, end = pod.usable
            for at, taken in pod.taken:
                if at < end:
                    changes.append((max(at, begin), number, pod.slots - taken))
            changes.append((end, number, 0))
        free, by_pod = [(-inf, 0)], [0] * len(self.pods)
        for at, number, count in sorted(changes, key=lambda change: change[0]):
            by_pod[number] = count
            free.append((at, sum(by_pod)))
        return free

    async def close(self) -> None:
        """End everything."""
        if self._parent is not None:
            assert self._parent.stdin is not None
            self._parent.stdin.close()
            await self._parent.wait()
            await self._reading


class ProcessorWaits:
    """Time that threads were ready to run and waited for a processor, from the kernel.

    Refusals are timed without it: other processes of this machine must not make them late.
    """

    def __init__(self, processes: list[int]) -> None:
        self.processes = processes
        self._seconds: dict[str, float] = {}
        self._summed = -inf

    def since_now(self) -> Callable[[], float]:
        """Return a function that returns the seconds of all threads since this call."""
        if monotonic() > self._summed + _AGE_S:
            self._sum()
        before = sum(self._seconds.values())
        return lambda: self._sum() - before

    def _sum(self) -> float:
        """Read all threads. An ended one keeps what it had at the last call."""
        self._summed = monotonic()
        for process in self.processes:
            with suppress(OSError):
                for thread in Path(f"/proc/{process}/task").iterdir():
                    with suppress(OSError):
                        # proc(5): run time, wait in nanoseconds, time slices.
                        self._seconds[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
        return sum(self._seconds.values())


def least_free(free: list[tuple[float, int]], begin: float, end: float) -> int:
    """Return the lowest number of free slots between two times."""
    before = [count for at, count in free if at <= begin]
    return min([before[-1], *(count for at, count in free if begin < at < end)])


class NameServer(asyncio.DatagramProtocol):
    """Answers every query for IPv4 addresses with `addresses`, and others with nothing, as the cluster's DNS does."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]

    def close(self) -> None:
        """Stop."""
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """RFC 1035."""
        end = data.index(b"\0", 12) + 5
        (kind,) = struct.unpack_from(">H", data, end - 4)
        addresses = list(self.addresses) if kind == 1 else []
        header = data[:2] + struct.pack(">HHHHH", 0x8580, 1, len(addresses), 0, 0)
        records = [b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(each) for each in addresses]
        self._transport.sendto(header + data[12:end] + b"".join(records), addr)


@asynccontextmanager
async def fleet(models: Path, slots: int = 2, delay: float = 0.002, **settings: Any) -> AsyncIterator[Fleet]:
    """A fleet without pods yet. `settings`: of the gateways."""
    running = Fleet(models, slots, delay, settings)
    await running.names.start()
    try:
        yield running
    finally:
        await running.close()
        running.names.close()


@dataclass
class Balancer:
    """A running HAProxy. `lost`: addresses of the pods that ended without answering a request or in a call."""

    url: str
    grpc: str
    metrics: str
    lost: list[str] = field(default_factory=list)

    async def ready(self, count: int) -> None:
        """Wait until so many pods take calls."""
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while await self.up(client) != count:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def read(self, log: asyncio.StreamReader) -> None:
        """Read its log until it ends."""
        async for line in log:
            if found := re.fullmatch(r"request (\S+) S.\n", line.decode()):
                self.lost.append(found[1])

    async def up(self, client: httpx.AsyncClient) -> int:
        """Return the number of pods that take calls, or -1 while HAProxy starts."""
        try:
            text = (await client.get(self.metrics)).text
        except httpx.TransportError:
            return -1
        counts = [
            len(re.findall(rf'^haproxy_server_status{{proxy="{name}",server="pod\d+",state="UP"}} 1$', text, re.M))
            for name in ("http", "grpc")
        ]
        return counts[0] if counts[0] == counts[1] else -1


@asynccontextmanager
async def balancer(running: Fleet, folder: Path, pods: int, **replaced: str) -> AsyncIterator[Balancer]:
    """HAProxy with the configuration of a chart with so many pods. Skips without HAProxy.

    `replaced`: whole settings, by their first word.
    """
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: .ci/haproxy")
    config = render({**SHARED, "replicas": pods, "pool": {"enabled": True, "threads": 1}}).one("ConfigMap")["data"][
        "haproxy.cfg"
    ]
    ports = [free_port() for _ in range(3)]
    for word, new in replaced.items():
        config, found = re.subn(rf"(?m)^    {word.replace('_', '-')} .*$", f"    {new}", config)
        assert found == 1
    config = config.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{running.names.port}")
    for standard, port in zip((8998, 8999, 8404), ports, strict=True):
        config, found = re.subn(rf"bind :{standard}\b", f"bind 127.0.0.1:{port}", config)
        assert found == 1
    config = config.replace("local0 notice", "local0 info")
    config = config.replace("    log global\n", '    log global\n    log-format "request %si %ts"\n')
    path = folder / "haproxy.cfg"
    path.write_text(config)
    command = ("haproxy", "-db", "-f", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    running.waits.processes.append(process.pid)
    made = Balancer(*(f"127.0.0.1:{port}" for port in ports[:2]), f"http://127.0.0.1:{ports[2]}/metrics")
    reading = asyncio.create_task(made.read(process.stdout))
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await reading


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
