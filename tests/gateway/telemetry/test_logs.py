"""Log lines as JSON and as text, with fields, and the id of the request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from gateway.settings import LogFormat, LogLevel
from gateway.telemetry.logs import add_request, configure, formatter
from gateway.telemetry.requests import begin_request, request_id


def line(form: LogFormat, **extra: object) -> str:
    record = logging.getLogger("some.place").makeRecord(
        "some.place", logging.INFO, "file.py", 7, "it is %s", ("done",), None, extra=extra
    )
    assert add_request(record)
    return formatter(form).format(record)


def test_a_json_line_has_the_fields_by_name():
    entry = json.loads(line("json", api="grpc", seconds=1.5))
    assert entry.pop("time").endswith("+00:00")
    assert entry == {"level": "INFO", "logger": "some.place", "message": "it is done", "api": "grpc", "seconds": 1.5}


def test_a_text_line_has_them_after_the_message():
    assert line("text", api="grpc", seconds=1.5).endswith(" INFO some.place: it is done api=grpc seconds=1.5")


def test_fields_that_repeat_the_message_are_left_out():
    assert "color_message" not in line("json", color_message="it is done")
    assert "color_message" not in line("text", color_message="it is done")


@pytest.mark.parametrize(("level", "shown"), [("info", False), ("debug", True)])
def test_lines_per_request_need_the_level_debug(level: LogLevel, shown: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    for name in ("uvicorn.access", "httpx"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
    configure(level, "json")
    assert [logging.getLogger(name).level == logging.INFO for name in ("uvicorn.access", "httpx")] == [shown, shown]


def test_an_error_has_its_traceback_in_the_same_json_line():
    try:
        raise ValueError("wrong")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), (type(error), error, error.__traceback__))
    assert "ValueError: wrong" in json.loads(formatter("json").format(record))["exception"]


async def test_lines_of_a_request_have_its_id_and_those_of_others_have_not():
    async def serve(headers: dict[str, str]) -> str:
        begin_request(headers)
        await asyncio.sleep(0)
        return line("json")

    served = await asyncio.gather(*(asyncio.create_task(serve({"x-request-id": name})) for name in ("one", "two")))
    assert [json.loads(each)["request_id"] for each in served] == ["one", "two"]
    assert "request_id" not in json.loads(line("json"))
    assert request_id() is None


async def test_an_id_that_could_forge_a_line_or_fill_the_log_is_replaced():
    for given in ("", "a b", "a\nb", "ü", "x" * 65):
        made = await asyncio.create_task(_begun(given))
        assert made != given
        assert len(made) == 36


async def _begun(given: str) -> str:
    return begin_request({"x-request-id": given})
