"""The health check of the gateway image, against scripted servers."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS.parent / "deploy" / "ready.py"


class Handler(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def listening(tls: bool, status: int) -> Iterator[int]:
    handler = type("Answering", (Handler,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(TESTS / "data" / "localhost.pem", TESTS / "data" / "localhost-key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def code(port: int) -> int:
    environment = {**os.environ, "PERSONAPLEX_PORT": str(port)}
    return subprocess.run([sys.executable, SCRIPT], env=environment, stderr=subprocess.PIPE, check=False).returncode


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_exit_status_follows_readyz(tls: bool, status: int, expected: int) -> None:
    with listening(tls, status) as port:
        assert code(port) == expected


def test_a_closed_port_is_not_ready() -> None:
    with listening(tls=False, status=200) as port:
        pass
    assert code(port) == 1
