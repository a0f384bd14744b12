"""Runs a function in a process of its own: only a fresh process shows what memory it takes, and gives all of it back.

`python -m model_repository.evaluation.processes` reads a pickled function and its arguments from stdin. It writes
pickles to stdout: fractions done, and last the result.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

import model_repository
from model_repository.errors import EvaluationError, ModelRepositoryError
from model_repository.serving.device import DeviceError

_ROOT = Path(model_repository.__file__).parents[1]


def run_in_process(
    name: str, threads: int, done: Callable[[float], None], function: Callable[..., Any], *arguments: Any
) -> Any:
    """What `function(*arguments, done)` returns, with `threads` threads per model; 0 leaves the choice to them.

    Raises `EvaluationError`, which begins with `name`, if the function fails or the process is killed.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.getenv("PYTHONPATH")]))}
    if threads:
        environment["PERSONAPLEX_INTRA_OP_THREADS"] = str(threads)
    command = [sys.executable, "-m", "model_repository.evaluation.processes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:  # noqa: S603 - ourselves
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        try:
            with process.stdin as stdin:
                pickle.dump((function, arguments), stdin)
            while isinstance(message := pickle.load(process.stdout), float):  # noqa: S301 - from ourselves
                done(message)
        except (EOFError, BrokenPipeError):
            reason = f"its process ended with exit code {process.wait()}"
            if process.returncode == -signal.SIGKILL:
                reason = "its process was killed: most likely the machine has too little memory for it"
            raise EvaluationError(f"{name}: {reason}") from None
        except BaseException:
            process.kill()
            process.wait()
            raise
    if isinstance(message, Exception):
        raise EvaluationError(f"{name}: {message}")
    return message


def _main() -> None:
    # Nothing but messages goes to the pipe, whatever libraries print.
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    ort.set_default_logger_severity(3)

    def send(message: Any) -> None:
        pickle.dump(message, messages)
        messages.flush()

    function, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from ourselves
    try:
        result = function(*arguments, send)
    except (ModelRepositoryError, DeviceError) as error:
        result = EvaluationError(str(error))
    send(result)


if __name__ == "__main__":
    _main()
