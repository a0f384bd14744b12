"""How much work a test does: `pytest --long` sets the long form, which is what `make test-long` runs."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

VARIABLE = "TESTS_LONG"


def effort(short: T, long: T) -> T:
    """Return how much is done in this form: a number of examples, clients or frames, or what is tested.

    Mark the test with `pytest.mark.effort`, so that both forms run.
    """
    return long if os.environ.get(VARIABLE) == "1" else short
