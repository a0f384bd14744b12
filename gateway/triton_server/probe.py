"""Check whether Triton is ready."""

from __future__ import annotations

import http.client
import socket

TIMEOUT_S = 2.0


def is_ready(address: str) -> bool:
    """Return whether all models of the Triton at `address` (HOST:PORT, HTTP) are ready; False if it is unreachable."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(host: str, port: int) -> bool:
    """Return whether `port` accepts TCP connections."""
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
