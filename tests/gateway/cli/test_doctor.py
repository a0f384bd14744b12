from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli import doctor
from gateway.cli.checks import Check, Fit, Status, recommendation
from tests.gateway.cli.conftest import Outcome

Run = Callable[..., Outcome]
GOOD = Check("Python", Status.OK, "3.11.2")
SO_SO = Check("GPU", Status.WARN, "none [at all]", "add one")
BAD = Check("disk", Status.FAIL, "full", "make room")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the doctor find these, on a machine without a GPU."""
    monkeypatch.setattr(doctor, "fit_published", lambda: None)
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
        "Try the small speaking model: personaplex demo. For the 7B in real time use a GPU (docs/gpu.md)",
    ]


def test_a_failure_is_exit_code_2(personaplex: Run, found: Callable[..., None]) -> None:
    found(GOOD, BAD)
    outcome = personaplex("doctor")
    assert (outcome.code, outcome.err) == (2, "")
    assert "to mend: make room" in outcome.out
    assert outcome.out.splitlines()[-1] == "Fix disk first: make room"


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
        "recommendation": "Fix disk first: make room",
    }


@pytest.mark.parametrize(
    ("slots", "advice"),
    [
        ({"int4": 7, "int8": 5}, "personaplex build personaplex-7b-v1 models --device cuda --variant int8 --slots 5"),
        (
            {"int4": 86, "bf16": 79},
            "personaplex build personaplex-7b-v1 models --device cuda --variant bf16 --slots 79",
        ),
        ({}, "personaplex demo"),
    ],
)
def test_the_most_precise_variant_that_fits_on_the_gpu_is_recommended(slots: dict[str, int], advice: str) -> None:
    assert advice in recommendation([GOOD, SO_SO], None, Fit(True, 24 * 2**30, slots))


def test_a_built_repository_is_served() -> None:
    fit = Fit(True, 24 * 2**30, {"int8": 5})
    assert recommendation([GOOD], Path("models"), fit) == "Serve the models: personaplex serve models"
