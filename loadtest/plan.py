"""What the users of a run connect to and how their calls start and end."""

from __future__ import annotations

import functools
import json
import random
import ssl
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args
from urllib.parse import urlsplit

from gateway.cli.console import CommandError

Starts = Literal["admitted", "spread", "together"]
"""When calls begin to send. admitted: each as soon as the server has admitted it. spread, together: the calls of the
first users once all of them are admitted, evenly spread over the 80 ms of a frame or at the same instant."""

STARTS: tuple[str, ...] = get_args(Starts)
_GRPC_PORT = 8999


@dataclass(frozen=True)
class Plan:
    """One run, for the process that holds its calls.

    server: URL of the HTTP port, http or https; may have a path. grpc: HOST:PORT, or a URL of it; without a scheme it
    has TLS if `server` has, and if empty it is the server's host with port 8999. recording: the file users send.
    setup, drain: seconds for a call to be admitted, and for its last frames to arrive.
    """

    server: str
    grpc: str
    recording: str
    starts: Starts = "admitted"
    setup: float = 60.0
    drain: float = 2.0
    api_key: str = ""

    def check(self) -> None:
        """Raise CommandError if an address cannot be one."""
        address(self.server)
        address(self.grpc_url)

    @property
    def grpc_url(self) -> str:
        """URL of the gRPC port."""
        if "://" in self.grpc:
            return self.grpc
        server = urlsplit(self.server)
        host = f"[{server.hostname}]" if ":" in (server.hostname or "") else server.hostname
        return f"{server.scheme}://{self.grpc or f'{host}:{_GRPC_PORT}'}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """The inverse of `to_json`."""
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Address:
    """Where to connect. tls: None for a connection without TLS. authority: for the Host header."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: str
    path: str


@functools.cache  # a context for TLS takes 10 ms and more
def address(url: str, *protocols: str) -> Address:
    """Parse the URL of a server; `protocols` are offered in ALPN. Raises CommandError.

    Certificates are verified by OpenSSL's rules: SSL_CERT_FILE names a file of other authorities.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise CommandError(f"expected http://HOST:PORT or https://HOST:PORT, got {url!r}")
    tls = None
    if parts.scheme == "https":
        tls = ssl.create_default_context()
        if protocols:
            tls.set_alpn_protocols(protocols)
    default = 443 if tls else 80
    return Address(parts.hostname, port or default, tls, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))


def call_lengths(text: str, draw: random.Random) -> Callable[[], float]:
    """Parse `--length`: a function that returns the seconds of the next call. Raises CommandError.

    60: all calls the same. 30-90: uniformly distributed. ~120: exponentially distributed with this mean.
    """
    try:
        if text.startswith("~"):
            mean = _positive(text[1:])
            return lambda: draw.expovariate(1 / mean)
        shortest, found, longest = text.partition("-")
        low = _positive(shortest)
        high = _positive(longest) if found else low
        if high < low:
            raise ValueError
    except ValueError:
        raise CommandError(f"--length: expected seconds as 60, 30-90 or ~120, got {text!r}") from None
    return lambda: draw.uniform(low, high)


@dataclass(frozen=True)
class Stage:
    """`first` to `last` users, linearly over `seconds`."""

    first: int
    last: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> list[Stage]:
        """Parse stages, separated by commas. Raises ValueError."""
        stages = []
        for part in text.split(","):
            users, _, seconds = part.partition(":")
            first, ramp, last = users.partition("-")
            try:
                stage = cls(int(first), int(last if ramp else first), float(seconds))
            except ValueError:
                stage = cls(0, 0, 0.0)
            if min(stage.first, stage.last) < 0 or not 0 < stage.seconds < float("inf"):
                raise ValueError(f"--stages: expected USERS:SECONDS or FROM-TO:SECONDS, got {part!r}")
            stages.append(stage)
        return stages


def users_at(stages: list[Stage], seconds: float) -> int | None:
    """Number of users `seconds` after the start; None after the last stage."""
    for stage in stages:
        if seconds < stage.seconds:
            return stage.first + round((stage.last - stage.first) * seconds / stage.seconds)
        seconds -= stage.seconds
    return None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value
