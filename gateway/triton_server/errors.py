"""Errors of the embedded Triton server."""

from __future__ import annotations

from gateway.errors import GatewayError


class TritonError(GatewayError):
    """Base class of this package's errors. The message is one line for the operator."""


class TritonNotInstalledError(TritonError):
    """A part of the embedded server is missing. The message names it and how to install it."""


class TritonStartError(TritonError):
    """tritonserver ended during its start, or was not ready in time.

    Attributes:
        log: the last lines of its output, oldest first.
    """

    def __init__(self, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log = log
