from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from model_repository.errors import EvaluationError
from model_repository.evaluation.processes import run_in_process

Done = Callable[[float], None]


def fail(done: Done) -> NoReturn:
    raise EvaluationError("no such weights")


def die(done: Done) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int, done: Done) -> None:
    os._exit(code)


def threads(factor: int, done: Done) -> int:
    print("noise")
    done(0.5)
    return factor * int(os.environ["PERSONAPLEX_INTRA_OP_THREADS"])


def wait(file: Path, done: Done) -> None:
    file.write_text(str(os.getpid()))
    done(0.1)
    time.sleep(60)


def test_a_function_s_own_error_is_raised_with_the_name() -> None:
    with pytest.raises(EvaluationError, match=r"^big: no such weights$"):
        run_in_process("big", 0, lambda _: None, fail)


def test_a_killed_process_ran_out_of_memory() -> None:
    with pytest.raises(EvaluationError, match=r"^big: its process was killed: .*too little memory"):
        run_in_process("big", 0, lambda _: None, die)


def test_a_process_that_ends_is_told() -> None:
    with pytest.raises(EvaluationError, match=r"^big: its process ended with exit code 7$"):
        run_in_process("big", 0, lambda _: None, leave, 7)


def test_arguments_results_threads_and_progress_are_given_on() -> None:
    done: list[float] = []
    assert run_in_process("m", 3, done.append, threads, 2) == 6
    assert done == [0.5]
    assert "PERSONAPLEX_INTRA_OP_THREADS" not in os.environ


def test_the_process_dies_with_who_asked(tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process("m", 0, interrupt, wait, tmp_path / "pid")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
