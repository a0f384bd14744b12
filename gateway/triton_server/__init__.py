"""The embedded Triton server: find it, start it, restart it after a crash, stop it."""

from __future__ import annotations

from gateway.triton_server.errors import TritonError, TritonNotInstalledError, TritonStartError
from gateway.triton_server.installation import TritonInstallation
from gateway.triton_server.options import TritonOptions
from gateway.triton_server.server import TritonServer
from gateway.triton_server.supervisor import TritonSupervisor

__all__ = [
    "TritonError",
    "TritonInstallation",
    "TritonNotInstalledError",
    "TritonOptions",
    "TritonServer",
    "TritonStartError",
    "TritonSupervisor",
]
