"""The synchronous and the asyncio client against a scripted HTTP server."""

from __future__ import annotations

import asyncio
import base64
import email
import json
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Unpack, cast

import httpx
import pytest

from gateway.client import Answer, AsyncClient, Client, ClientError, RespondParams

Respond = Callable[[BaseHTTPRequestHandler], None]


class BlockingAsyncClient:
    """AsyncClient with the interface of Client, on an event loop of its own."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = AsyncClient(url, **options)
        self._runner = asyncio.Runner()

    def __enter__(self) -> BlockingAsyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def respond(self, audio: bytes, **params: Unpack[RespondParams]) -> Answer:
        return self._runner.run(self._client.respond(audio, **params))

    def stream(self, audio: bytes, **params: Unpack[RespondParams]) -> Iterator[bytes]:
        pieces = self._client.stream(audio, **params)

        async def following() -> bytes | None:
            return await anext(pieces, None)

        while (piece := self._runner.run(following())) is not None:
            yield piece

    def voices(self) -> dict[str, Any]:
        return self._runner.run(self._client.voices())

    def ready(self) -> str | None:
        return self._runner.run(self._client.ready())


Connect = Callable[..., Client | BlockingAsyncClient]


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of each kind."""
    return cast(Connect, request.param)


@pytest.fixture
def answering() -> Iterator[Callable[[Respond], str]]:
    """Starts a server that answers every request by the given function; its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Respond) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.body = self.rfile.read(int(self.headers["Content-Length"]))
                respond(self)

            def do_GET(self) -> None:
                respond(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sends(status: int, body: bytes, kind: str = "application/json") -> Respond:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return respond


BODY: dict[str, Any] = {
    "audio": base64.b64encode(b"RIFF").decode(), "transcript": "Hello.", "frames": 1, "sample_rate": 24_000,
    "voice": "ANA", "seed": 7, "timings": {"rtf": 0.1},
}  # fmt: skip


def respond(connect: Connect, url: str, **options: Any) -> Answer:
    with connect(url, **options) as client:
        return client.respond(b"RIFF", seed=1)


def test_an_answer_has_the_fields_of_the_response(connect: Connect, answering: Callable[[Respond], str]) -> None:
    """Those that a later server may add are ignored."""
    tokens = {"text_tokens": [3], "agent_codes": [[1] * 8], "user_codes": [[2] * 8]}
    for more in ({}, {"conversation_id": "c", **tokens}):
        answer = respond(connect, answering(sends(200, json.dumps({**BODY, **more, "later": 1}).encode())))
        assert answer == Answer(**{**BODY, **more, "audio": b"RIFF"})


@pytest.mark.parametrize("body", [{}, {**BODY, "audio": 7}, {**BODY, "audio": "%%%"}])
def test_an_object_that_is_no_answer_is_an_error(
    connect: Connect, answering: Callable[[Respond], str], body: dict[str, Any]
) -> None:
    with pytest.raises(ClientError, match="sent no answer"):
        respond(connect, answering(sends(200, json.dumps(body).encode())))


def test_parameters_are_fields_of_the_form(connect: Connect, answering: Callable[[Respond], str]) -> None:
    sent: list[list[tuple[str, bytes]]] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        kind, body = handler.headers["Content-Type"], handler.body  # type: ignore[attr-defined]
        form = email.message_from_bytes(f"Content-Type: {kind}\n\n".encode() + body)
        parts = cast(list[Message], form.get_payload())
        names = (str(part.get_param("name", header="Content-Disposition")) for part in parts)
        sent.append([(name, bytes(part.get_payload(decode=True))) for name, part in zip(names, parts, strict=True)])
        sends(200, json.dumps(BODY).encode())(handler)

    with connect(answering(note)) as client:
        client.respond(b"RIFF", voice_audio=b"OggS", seed=1, audio_temperature=0.5, greedy=False, include=["tokens"])
        list(client.stream(b"RIFF", text_prompt=""))
    assert sorted(sent[0]) == [
        ("audio", b"RIFF"), ("audio_temperature", b"0.5"), ("greedy", b"false"), ("include", b"tokens"), ("seed", b"1"),
        ("voice_audio", b"OggS"),
    ]  # fmt: skip
    assert sorted(sent[1]) == [("audio", b"RIFF"), ("stream", b"true"), ("text_prompt", b"")]


def test_the_error_is_the_detail_of_the_problem(connect: Connect, answering: Callable[[Respond], str]) -> None:
    url = answering(sends(503, b'{"detail": "all 8 conversations are taken"}', "application/problem+json"))
    with pytest.raises(ClientError, match=r"^all 8 conversations are taken$"):
        respond(connect, url)
    with connect(url) as client, pytest.raises(ClientError, match=r"^all 8 conversations are taken$"):
        next(client.stream(b"RIFF"))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"other": 1}'])
def test_the_error_without_a_detail_is_the_status(
    connect: Connect, answering: Callable[[Respond], str], body: bytes
) -> None:
    url = answering(sends(502, body))
    with pytest.raises(ClientError, match=f"^{url}/v1/respond answered 502 Bad Gateway$"):
        respond(connect, url)


def test_a_response_that_is_not_json_is_an_error(connect: Connect, answering: Callable[[Respond], str]) -> None:
    with pytest.raises(ClientError, match="sent no JSON: b'hello'"):
        respond(connect, answering(sends(200, b"hello", "text/plain")))


def test_a_response_that_breaks_off_is_an_error(connect: Connect, answering: Callable[[Respond], str]) -> None:
    def breaks_off(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"RIFF")

    with connect(answering(breaks_off)) as client:
        pieces = client.stream(b"RIFF")
        assert next(pieces) == b"RIFF"
        with pytest.raises(ClientError, match="broke off the response"):
            next(pieces)


def test_a_silent_server_is_a_timeout(connect: Connect, answering: Callable[[Respond], str]) -> None:
    asleep = threading.Event()
    url = answering(lambda _: asleep.wait(5) and None)
    with pytest.raises(ClientError, match="does not answer in time"):
        respond(connect, url, read_timeout=0.2)
    asleep.set()


def test_an_unreachable_server_is_an_error_with_a_hint(connect: Connect) -> None:
    with pytest.raises(ClientError, match=r"cannot reach http://127\.0\.0\.1:1: .*personaplex serve"):
        respond(connect, "http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["", "elsewhere", "ftp://x", "http://[", "http://"])
def test_an_invalid_url_is_an_error(connect: Connect, url: str) -> None:
    with pytest.raises(ClientError):
        respond(connect, url)


def test_voices_are_the_body_of_the_response(connect: Connect, answering: Callable[[Respond], str]) -> None:
    with connect(answering(sends(200, b'{"default": "ANA", "voices": []}'))) as client:
        assert client.voices() == {"default": "ANA", "voices": []}
    with (
        connect(answering(sends(401, b'{"detail": "no key"}'))) as client,
        pytest.raises(ClientError, match=r"^no key$"),
    ):
        client.voices()


def test_ready_returns_none_or_the_reason(connect: Connect, answering: Callable[[Respond], str]) -> None:
    for respond_, expected in ((sends(200, b"{}"), None), (sends(503, b'{"detail": "no Triton"}'), "no Triton")):
        with connect(answering(respond_)) as client:
            assert client.ready() == expected
    with connect("http://127.0.0.1:1") as client:
        assert "cannot reach" in (client.ready() or "")


@pytest.mark.parametrize("key", [None, "", "a-key", "clé"])
def test_requests_carry_the_api_key(connect: Connect, answering: Callable[[Respond], str], key: str | None) -> None:
    shown: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        shown.append(handler.headers["X-API-Key"])
        sends(200, json.dumps(BODY).encode())(handler)

    with connect(answering(note), api_key=key) as client:
        client.respond(b"RIFF")
        list(client.stream(b"RIFF"))
    assert shown == [key.encode().decode("latin-1") if key else None] * 2


def test_proxies_of_the_environment_are_not_used(
    connect: Connect, answering: Callable[[Respond], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    url = answering(sends(200, json.dumps(BODY).encode()))
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert respond(connect, url).transcript == "Hello."
