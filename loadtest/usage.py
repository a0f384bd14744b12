"""CPU use during a run: of the gateway, of Triton and each model's process, and of the load generator."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import psutil

SAMPLE_SECONDS = 0.5
GATEWAY, TRITON, LOCUST, USERS = "gateway", "triton", "locust", "users"
_CLIENT = (LOCUST, USERS)


@dataclass(frozen=True)
class Usage:
    """CPU seconds by process over `seconds` of time. machine: CPU seconds of all processes on the machine."""

    seconds: float
    cpu: Mapping[str, float]
    machine: float = 0.0

    @property
    def others(self) -> float:
        """CPU seconds of processes outside the run: a source of noise."""
        return max(0.0, self.machine - sum(self.cpu.values()))

    @property
    def gateway(self) -> float:
        return self.cpu.get(GATEWAY, 0.0)

    @property
    def triton(self) -> float:
        """Triton and its models' processes together."""
        return sum(value for name, value in self.cpu.items() if name != GATEWAY and name not in _CLIENT)

    @property
    def client(self) -> float:
        return sum(self.cpu.get(name, 0.0) for name in _CLIENT)


class Sampler:
    """Samples the CPU times of `processes` while entered; all must be running when it is created."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = dict(processes)
        self._at: list[float] = []
        self._times: dict[str, list[float]] = {name: [] for name in processes}
        self._machine: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="usage")

    def between(self, begin: float, end: float) -> Usage:
        """CPU used from `begin` to `end`, moments of time.monotonic, as far as samples exist."""
        cpu = {}
        for name, times in self._times.items():
            at = self._at[: len(times)]
            cpu[name] = _difference(begin, end, at, times)
        machine = _difference(begin, end, self._at[: len(self._machine)], self._machine)
        return Usage(end - begin, cpu, machine)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._at.append(time.monotonic())
            self._machine.append(machine_seconds())
            for name, process in list(self._processes.items()):
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    # The process has ended; its samples remain.
                    del self._processes[name]
                else:
                    self._times[name].append(times.user + times.system)
            if self._over.wait(SAMPLE_SECONDS):
                return


def _difference(begin: float, end: float, at: list[float], values: list[float]) -> float:
    """Growth of an increasing value, sampled at the moments `at`, from `begin` to `end`."""
    first, last = np.interp([begin, end], at, values) if values else (0.0, 0.0)
    return float(last - first)


def machine_seconds() -> float:
    """CPU seconds of all processes since boot."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def server_processes(pid: int, models: tuple[str, ...]) -> dict[str, psutil.Process]:
    """The gateway at `pid`, Triton below it, and Triton's process for each of `models`."""
    gateway = psutil.Process(pid)
    found = {GATEWAY: gateway}
    for process in gateway.children(recursive=True):
        command = " ".join(process.cmdline())
        model = next((model for model in models if f"/{model}/" in command), None)
        found[model or (TRITON if "bin/tritonserver" in command else f"process {process.pid}")] = process
    return found
