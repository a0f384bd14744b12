from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from model_repository.errors import EvaluationError
from model_repository.evaluation.processes import run_worker


def test_a_failure_is_told_in_one_line(tmp_path: Path) -> None:
    """The worker's own words, after the repository's name."""
    job = {"do": "converse", "models": str(tmp_path / "nothing"), "slots": 1}
    with pytest.raises(EvaluationError, match=r"nothing is not a built repository.*manifest\.json") as error:
        run_worker(tmp_path, job, 0, lambda _: None)
    assert "\n" not in str(error.value)


def test_a_killed_worker_ran_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "killer"
    killer.write_text(f"#!/bin/sh\nkill -{signal.SIGKILL.value} $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(EvaluationError, match=r"big: its process was killed: .*too little memory"):
        run_worker(tmp_path, {"models": "big"}, 0, lambda _: None)


def test_threads_are_given_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teller = tmp_path / "teller"
    teller.write_text('#!/bin/sh\necho "{\\"threads\\": $PERSONAPLEX_INTRA_OP_THREADS}" > "$3/result.json"; echo 0.5\n')
    teller.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(teller))
    done: list[float] = []
    assert run_worker(tmp_path, {"models": "m"}, 3, done.append) == {"threads": 3}
    assert done == [0.5]
    assert "PERSONAPLEX_INTRA_OP_THREADS" not in os.environ


def test_the_worker_dies_with_who_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = tmp_path / "sleeper"
    sleeper.write_text('#!/bin/sh\necho $$ > "$3/pid"; echo 0.1; exec sleep 60\n')
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(tmp_path, {"models": "m"}, 0, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
