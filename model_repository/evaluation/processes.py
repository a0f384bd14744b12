"""Starts the workers, one after the other, and tells how far they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_repository
from model_repository.errors import EvaluationError

_ROOT = Path(model_repository.__file__).parents[1]


def run_worker(folder: Path, job: dict[str, Any], threads: int, done: Callable[[float], None]) -> dict[str, Any]:
    """What the worker answers to `job`, whose arrays lie in `folder`; `threads` 0 leaves the choice to the models.

    Raises `EvaluationError` with the worker's own last line if it fails, or that it was killed.
    """
    (folder / "job.json").write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.getenv("PYTHONPATH")]))}
    if threads:
        environment["PERSONAPLEX_INTRA_OP_THREADS"] = str(threads)
    command = [sys.executable, "-m", "model_repository.evaluation.worker", str(folder)]
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(  # noqa: S603 - ourselves
            command, stdout=subprocess.PIPE, stderr=complaints, stdin=subprocess.DEVNULL, text=True, env=environment
        ) as process:
            try:
                for line in process.stdout or ():
                    done(float(line))
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            complaints.seek(0)
            raise EvaluationError(f"{job['models']}: {_reason(process.returncode, complaints.read())}")
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _reason(code: int, complaints: str) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed: most likely the machine has too little memory for it"
    lines = complaints.strip().splitlines()
    return lines[-1] if lines else f"its process ended with exit code {code}"
