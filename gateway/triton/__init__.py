"""The embedded Triton server: found in the wheel, started, watched, stopped."""

from __future__ import annotations

from gateway.triton.errors import TritonError, TritonNotInstalledError, TritonStartError
from gateway.triton.installation import TritonInstallation
from gateway.triton.options import TritonOptions
from gateway.triton.server import TritonServer

__all__ = [
    "TritonError",
    "TritonInstallation",
    "TritonNotInstalledError",
    "TritonOptions",
    "TritonServer",
    "TritonStartError",
]
