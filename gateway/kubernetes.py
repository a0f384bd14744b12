"""Kubernetes' API for a container of a pod, with the service account that is mounted there."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class TokenFile(httpx.Auth):
    """The token in a file, which Kubernetes replaces from time to time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        """Add the token to a request. Raises OSError."""
        request.headers["authorization"] = f"Bearer {self._path.read_text().strip()}"
        yield request


def connect() -> httpx.Client:
    """A client of the API server. Raises KeyError or OSError outside of a pod."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return httpx.Client(
        base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        auth=TokenFile(_ACCOUNT / "token"),
        verify=ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt")),
        trust_env=False,
    )
