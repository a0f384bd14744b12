from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from gateway.cli import doctor
from gateway.cli.checks import Check, Status
from tests.gateway.cli.conftest import Outcome

Run = Callable[..., Outcome]
GOOD = Check("Python", Status.OK, "3.11.2")
SO_SO = Check("GPU", Status.WARN, "none [at all]", "add one")
BAD = Check("disk", Status.FAIL, "full", "make room")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the doctor find these."""
    return lambda *checks: monkeypatch.setattr(doctor, "run_checks", lambda *_: list(checks))


def test_a_warning_is_no_failure(personaplex: Run, found: Callable[..., None]) -> None:
    found(GOOD, SO_SO)
    outcome = personaplex("doctor")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "OK    Python         3.11.2",
        "WARN  GPU            none [at all]",
        "                     to mend: add one",
        "This machine can serve.",
    ]


def test_a_failure_is_exit_code_2(personaplex: Run, found: Callable[..., None]) -> None:
    found(GOOD, BAD)
    outcome = personaplex("doctor")
    assert (outcome.code, outcome.err) == (2, "")
    assert "to mend: make room" in outcome.out


def test_json_has_the_same_content(personaplex: Run, found: Callable[..., None]) -> None:
    found(GOOD, BAD)
    outcome = personaplex("doctor", "--json")
    assert outcome.code == 2
    assert json.loads(outcome.out) == {
        "runnable": False,
        "checks": [
            {"name": "Python", "status": "OK", "found": "3.11.2", "mend": ""},
            {"name": "disk", "status": "FAIL", "found": "full", "mend": "make room"},
        ],
    }
