"""Runs one tritonserver and leaves nothing of it behind, however the gateway or the server ends.

The gateway starts this file as a script (standard library only, so it is up in milliseconds) and keeps the write end
of its standard input. SIGTERM stops the server: SIGTERM, a bounded wait, then SIGKILL for its whole process group.
SIGUSR1 (stop now), a second SIGTERM, or the end of that pipe (the gateway is gone, even by SIGKILL) cuts the wait
short. Triton's Python stubs are separate processes that can outlive a killed server; as their subreaper the guard
inherits them, ends them, and removes the server's temporary folder and its regions in /dev/shm.

    guard.py GRACE_SECONDS TEMPORARY_FOLDER SHM_PREFIX tritonserver [flag...]

Exit status: the server's, 128 + N if signal N ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Between SIGKILL and the kernel having taken a process away; a GPU's driver can take a while over it.
KILL_WAIT_S = 10.0


def main(argv: list[str]) -> int:
    """Runs the server to its end; see the module's text for the arguments."""
    grace, folder, shm_prefix, command = float(argv[1]), Path(argv[2]), argv[3], argv[4:]
    orders: list[int] = []
    wake = _wake_on_signals(orders)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = _spawn(command)
    reaper = _Reaper(server)
    deadline: float | None = None
    try:
        while not reaper.server_ended():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([0, wake], [], [], left)
            if wake in ready:
                os.read(wake, 4096)
            if 0 in ready or left == 0.0 or signal.SIGUSR1 in orders or len(orders) > 1:
                break
            if orders and deadline is None:
                deadline = time.monotonic() + grace
                os.kill(server, signal.SIGTERM)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGKILL)
        _wait(reaper.all_ended, KILL_WAIT_S)
        remove_traces(folder, shm_prefix)
    return reaper.status


def remove_traces(folder: Path, shm_prefix: str) -> None:
    """Removes a server's temporary folder and its shared memory."""
    shutil.rmtree(folder, ignore_errors=True)
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108 - where Triton puts them
        region.unlink(missing_ok=True)


class _Reaper:
    """Collects every ended child: the server, and the stubs that became ours when it died."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._ended = False
        self.status = 128 + signal.SIGKILL

    def server_ended(self) -> bool:
        self.all_ended()
        return self._ended

    def all_ended(self) -> bool:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._server:
                self._ended = True
                code = os.waitstatus_to_exitcode(status)
                self.status = 128 - code if code < 0 else code


def _wake_on_signals(orders: list[int]) -> int:
    """Appends SIGTERM and SIGUSR1 to `orders`; returns a descriptor readable after these and after SIGCHLD."""
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: orders.append(number))
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake


def _spawn(command: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Should the guard itself be killed, the kernel ends the server, and the stubs see their parent gone.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if os.getppid() != guard:
        os._exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is the point
    except OSError as error:
        print(f"cannot run {command[0]}: {error}", flush=True)
        os._exit(127)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
