"""API keys: of the settings, and of a file that changes while the server runs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import TooManyForKey, Unauthorized
from gateway.session.keys import KeyHolder, Keys
from gateway.session.keys_file import KeysFileError, add_key, read_keys
from gateway.telemetry.metrics import Metrics


class Clock:
    """Takes the place of `monotonic`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("session.keys", "file_watch"):
        monkeypatch.setattr(f"gateway.{module}.monotonic", clock)
    return clock


def keys_of(keys: list[str], file: Path | None = None, conversations: int = 0, per_minute: int = 0) -> Keys:
    return Keys(keys, file, conversations, per_minute, 5, Metrics(1))


def entry(name: str, *keys: str, **limits: int) -> dict[str, Any]:
    return {"name": name, "sha256": [hashlib.sha256(key.encode()).hexdigest() for key in keys], **limits}


def write(file: Path, *entries: dict[str, Any]) -> None:
    file.write_text(json.dumps({"keys": entries}))


@pytest.mark.parametrize("keys", [["a-key"], ["a-key", ""], [""]])
@pytest.mark.parametrize("presented", [None, "", "another"])
def test_with_keys_a_request_needs_one(keys: list[str], presented: str | None):
    with pytest.raises(Unauthorized):
        keys_of(keys).check(presented)


def test_each_key_has_its_own_holder():
    keys = keys_of(["one", "two"])
    assert keys.check("one") is keys.check("one")
    assert keys.check("one") is not keys.check("two")


def test_without_keys_every_request_is_accepted():
    assert keys_of([]).check(None) is None


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵"])
def test_a_key_with_other_characters_than_ascii_matches(key: str):
    """As headers arrive: decoded as Latin-1, from UTF-8."""
    keys = keys_of([key])
    assert keys.check(key.encode().decode("latin-1")) is not None
    assert keys.check(key) is not None
    with pytest.raises(Unauthorized):
        keys.check(key[:-1])


def name_of(keys: Keys, presented: str) -> str:
    holder = keys.check(presented)
    assert holder is not None
    return holder.name


def test_keys_of_a_file_have_names_and_limits(tmp_path: Path):
    file = tmp_path / "keys.json"
    ana = entry("ana", "old", "new", conversations=3, per_minute=4)
    write(file, ana, entry("bea", "b", conversations=0, per_minute=0), entry("cy", "c"))
    keys = keys_of(["plain"], file, conversations=7, per_minute=9)
    assert [name_of(keys, key) for key in ("old", "new", "b", "c", "plain")] == ["ana", "ana", "bea", "cy", "key1"]
    holders = [keys.check(key) for key in ("old", "b", "c", "plain")]
    assert [(each.conversations, each.per_minute) for each in holders] == [(3, 4), (0, 0), (7, 9), (7, 9)]
    with pytest.raises(Unauthorized):
        keys.check("another")


def test_a_changed_file_is_read_again_and_calls_stay_counted(tmp_path: Path, clock: Clock):
    file = tmp_path / "keys.json"
    write(file, entry("ana", "a", conversations=2), entry("bea", "b"))
    keys = keys_of([], file)
    ana = keys.check("a")
    assert ana is not None
    ana.take()
    write(file, entry("ana", "another", conversations=1))
    os.utime(file, ns=(1, 1))
    assert keys.check("a") is ana, "not looked at more than once a second"
    clock.now += 1.1
    assert keys.check("another") is ana
    for gone in ("a", "b"):
        with pytest.raises(Unauthorized):
            keys.check(gone)
    with pytest.raises(TooManyForKey, match="hold 1 "):
        ana.take()


@pytest.mark.parametrize("break_it", [lambda file: file.write_text("{"), lambda file: file.unlink()])
def test_a_file_that_breaks_leaves_the_keys_as_they_are(
    tmp_path: Path, clock: Clock, break_it: Callable[[Path], object], caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "keys.json"
    write(file, entry("ana", "a"))
    keys = keys_of([], file)
    break_it(file)
    for _ in range(3):
        clock.now += 1.1
        assert name_of(keys, "a") == "ana"
    assert len(caplog.records) == 1
    write(file, entry("bea", "b"))
    clock.now += 1.1
    assert name_of(keys, "b") == "bea"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "object"),
        ('{"keys": []}', "keys: "),
        (json.dumps({"keys": [entry("an na", "a")]}), "name"),
        (json.dumps({"keys": [{"name": "ana", "sha256": ["abc"]}]}), "sha256"),
        (json.dumps({"keys": [{"name": "ana", "key": "a"}]}), "sha256"),
        (json.dumps({"keys": [entry("ana", "a"), entry("ana", "b")]}), "each name once"),
        (json.dumps({"keys": [entry("ana", "a"), entry("bea", "a")]}), "each hash once"),
    ],
)
def test_a_file_that_is_wrong_from_the_start_is_refused(tmp_path: Path, text: str, complaint: str):
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(KeysFileError, match=complaint):
        keys_of([], file)
    with pytest.raises(KeysFileError, match="cannot read"):
        keys_of([], tmp_path / "none.json")


def test_conversations_per_minute_are_limited(clock: Clock):
    holder = KeyHolder("ana", 5, conversations=0, per_minute=3)
    for _ in range(3):
        holder.take()
    with pytest.raises(TooManyForKey, match="begin 3 "):
        holder.take()
    assert holder.held == 3
    clock.now += 20
    holder.take()
    with pytest.raises(TooManyForKey):
        holder.take()
    clock.now += 3600
    for _ in range(3):
        holder.take()
    with pytest.raises(TooManyForKey):
        holder.take()


def test_added_keys_work_and_are_nowhere_in_the_file(tmp_path: Path):
    file = tmp_path / "keys.json"
    first, second = add_key(file, "ana", 2, None), add_key(file, "bea", None, 9)
    third = add_key(file, "ana", 4, 0)
    keys = keys_of([], file)
    assert [name_of(keys, key) for key in (first, second, third)] == ["ana", "bea", "ana"]
    assert [(each.conversations, each.per_minute) for each in read_keys(file)] == [(4, 0), (None, 9)]
    assert not any(key in file.read_text() for key in (first, second, third))
    with pytest.raises(KeysFileError, match="pattern"):
        add_key(file, "no spaces", None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]
