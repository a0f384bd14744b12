"""API keys: who is let in."""

from __future__ import annotations

import pytest

from gateway.errors import Unauthorized
from gateway.session.keys import Keys


@pytest.mark.parametrize("keys", [["a-key"], ["a-key", ""], [""]])
@pytest.mark.parametrize("presented", [None, "", "another"])
def test_where_there_are_keys_one_must_be_shown(keys: list[str], presented: str | None):
    with pytest.raises(Unauthorized):
        Keys(keys, 0, 5).check(presented)


def test_each_key_has_its_own_holder():
    keys = Keys(["one", "two"], 0, 5)
    assert keys.check("one") is keys.check("one")
    assert keys.check("one") is not keys.check("two")


def test_without_keys_everybody_may_call():
    assert Keys([], 0, 5).check(None) is None
