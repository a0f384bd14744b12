"""Run one tritonserver and clean up after it, however the gateway or the server ends.

The gateway runs this file as a script (standard library only, so it starts in milliseconds) and holds the write end of
its standard input. At SIGTERM the guard sends SIGTERM to the server, waits up to GRACE_SECONDS and then kills its
process group. SIGUSR1 (stop now), a second SIGTERM or the end of the pipe (the gateway has ended, even by SIGKILL) ends
the wait. Triton's Python stubs are processes of their own that can outlive a killed server. The guard is their
subreaper: it becomes their parent, kills them, and removes the server's temporary folder and its regions in /dev/shm.

    guard.py GRACE_SECONDS TEMPORARY_FOLDER SHM_PREFIX tritonserver [flag...]

Exit status: that of the server; 128 + N if signal N ended it.
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

# Timeout for a process to disappear after SIGKILL. The driver of a GPU can take seconds to release its memory.
KILL_WAIT_S = 10.0


def main(argv: list[str]) -> int:
    """Run the server to its end. See the module's docstring for the arguments."""
    grace, folder, shm_prefix, command = float(argv[1]), Path(argv[2]), argv[3], argv[4:]
    signals: list[int] = []
    wake = _wake_on_signals(signals)
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
            if 0 in ready or left == 0.0 or signal.SIGUSR1 in signals or len(signals) > 1:
                break
            if signals and deadline is None:
                deadline = time.monotonic() + grace
                os.kill(server, signal.SIGTERM)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server, signal.SIGKILL)
        _wait(reaper.all_ended, KILL_WAIT_S)
        remove_files(folder, shm_prefix)
    return reaper.status


def remove_files(folder: Path, shm_prefix: str) -> None:
    """Remove a server's temporary folder and shared memory."""
    shutil.rmtree(folder, ignore_errors=True)
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108 - Triton's location
        region.unlink(missing_ok=True)


class _Reaper:
    """Reaps ended children: the server, and the stubs that the guard inherits when the server dies."""

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


def _wake_on_signals(signals: list[int]) -> int:
    """Append SIGTERM and SIGUSR1 to `signals`; return a descriptor that is readable after these and SIGCHLD."""
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _frame: signals.append(number))
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return wake


def _spawn(command: list[str]) -> int:
    guard = os.getpid()
    pid = os.fork()
    with contextlib.suppress(PermissionError):
        # In both processes: the group exists before either goes on. The call fails if the child already runs `command`.
        os.setpgid(pid, pid)
    if pid:
        return pid
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # If the guard is killed, the kernel kills the server, and the stubs end without their parent.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    if os.getppid() != guard:
        os._exit(1)
    try:
        os.execv(command[0], command)  # noqa: S606 - no shell is needed
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
