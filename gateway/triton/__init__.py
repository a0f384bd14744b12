"""The embedded Triton server: found in the wheel, started, watched, stopped."""

from __future__ import annotations

from gateway.triton.errors import TritonError, TritonNotInstalledError, TritonStartError
from gateway.triton.installation import TritonInstallation
from gateway.triton.keeper import TritonKeeper
from gateway.triton.options import TritonOptions
from gateway.triton.server import TritonServer

__all__ = [
    "TritonError",
    "TritonInstallation",
    "TritonKeeper",
    "TritonNotInstalledError",
    "TritonOptions",
    "TritonServer",
    "TritonStartError",
]
