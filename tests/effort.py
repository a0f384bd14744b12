"""How much work a test does: `pytest --long` sets the long form, which is what `make test-long` runs."""

from __future__ import annotations

import os

VARIABLE = "TESTS_LONG"
LONG = os.environ.get(VARIABLE) == "1"


def effort(short: int, long: int) -> int:
    """A number of examples, clients or frames. Mark the test with `pytest.mark.effort`, so that both forms run."""
    return long if LONG else short
