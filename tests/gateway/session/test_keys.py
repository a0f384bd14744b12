"""API keys."""

from __future__ import annotations

import pytest

from gateway.errors import Unauthorized
from gateway.session.keys import Keys


@pytest.mark.parametrize("keys", [["a-key"], ["a-key", ""], [""]])
@pytest.mark.parametrize("presented", [None, "", "another"])
def test_with_keys_a_request_needs_one(keys: list[str], presented: str | None):
    with pytest.raises(Unauthorized):
        Keys(keys, 0, 5).check(presented)


def test_each_key_has_its_own_holder():
    keys = Keys(["one", "two"], 0, 5)
    assert keys.check("one") is keys.check("one")
    assert keys.check("one") is not keys.check("two")


def test_without_keys_every_request_is_accepted():
    assert Keys([], 0, 5).check(None) is None


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵"])
def test_a_key_with_other_characters_than_ascii_matches(key: str):
    """As headers arrive: decoded as Latin-1, from UTF-8."""
    keys = Keys([key], 0, 7)
    assert keys.check(key.encode().decode("latin-1")) is not None
    assert keys.check(key) is not None
    with pytest.raises(Unauthorized):
        keys.check(key[:-1])
