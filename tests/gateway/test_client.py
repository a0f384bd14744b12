from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from gateway import client as client_module
from gateway.client import Client, ClientError

Respond = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Respond], str]]:
    """Starts a server that answers every request by the given function; its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Respond) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
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


def respond(url: str) -> dict[str, object]:
    with Client(url) as client:
        return client.respond({"audio": b"RIFF"}, {"seed": "1"})


def test_a_problem_is_told_by_its_detail(answering: Callable[[Respond], str]) -> None:
    url = answering(sends(503, b'{"detail": "all 8 conversations are taken"}', "application/problem+json"))
    with pytest.raises(ClientError, match=r"^all 8 conversations are taken$"):
        respond(url)
    with Client(url) as client, pytest.raises(ClientError, match=r"^all 8 conversations are taken$"):
        next(client.stream({"audio": b"RIFF"}, {}))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"other": 1}'])
def test_an_error_without_detail_is_told_by_its_status(answering: Callable[[Respond], str], body: bytes) -> None:
    url = answering(sends(502, body))
    with pytest.raises(ClientError, match=f"^{url}/v1/respond answered 502 Bad Gateway$"):
        respond(url)


def test_an_answer_that_is_no_json_is_told(answering: Callable[[Respond], str]) -> None:
    with pytest.raises(ClientError, match="sent no JSON: b'hello'"):
        respond(answering(sends(200, b"hello", "text/plain")))


def test_an_answer_that_breaks_off_is_told(answering: Callable[[Respond], str]) -> None:
    def breaks_off(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"RIFF")

    with Client(answering(breaks_off)) as client:
        pieces = client.stream({"audio": b"RIFF"}, {})
        assert next(pieces) == b"RIFF"
        with pytest.raises(ClientError, match="broke off the answer"):
            next(pieces)


def test_a_server_that_says_nothing_is_given_up(
    answering: Callable[[Respond], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "READ_TIMEOUT_S", 0.2)
    asleep = threading.Event()
    url = answering(lambda _: asleep.wait(5) and None)
    with pytest.raises(ClientError, match="does not answer in time"):
        respond(url)
    asleep.set()


def test_nobody_there_is_told_with_what_to_do() -> None:
    with pytest.raises(ClientError, match=r"cannot reach http://127\.0\.0\.1:1: .*personaplex serve"):
        respond("http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["", "elsewhere", "ftp://x", "http://[", "http://"])
def test_what_is_no_url_is_told(url: str) -> None:
    with pytest.raises(ClientError):
        respond(url)


def test_ready_is_none_or_the_reason(answering: Callable[[Respond], str]) -> None:
    for respond_, said in ((sends(200, b"{}"), None), (sends(503, b'{"detail": "no Triton"}'), "no Triton")):
        with Client(answering(respond_)) as client:
            assert client.ready() == said
    with Client("http://127.0.0.1:1") as client:
        assert "cannot reach" in (client.ready() or "")


@pytest.mark.parametrize("key", [None, "", "a-key", "clé"])
def test_a_key_is_shown_if_there_is_one(answering: Callable[[Respond], str], key: str | None) -> None:
    shown: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        shown.append(handler.headers["X-API-Key"])
        sends(200, b"{}")(handler)

    with Client(answering(note), api_key=key) as client:
        client.respond({"audio": b"RIFF"}, {})
        list(client.stream({"audio": b"RIFF"}, {}))
    assert shown == [key.encode().decode("latin-1") if key else None] * 2


def test_proxies_of_the_environment_are_not_used(
    answering: Callable[[Respond], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    url = answering(sends(200, b'{"frames": 1}'))
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert respond(url) == {"frames": 1}
