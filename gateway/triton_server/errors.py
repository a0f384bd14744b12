"""What can go wrong between the gateway and its embedded Triton: TritonError and the two reasons a start fails."""

from __future__ import annotations

from gateway.errors import GatewayError


class TritonError(GatewayError):
    """Base of this package's errors; its text is one line meant for the operator."""


class TritonNotInstalledError(TritonError):
    """A part of the embedded server is missing here; the text names it and says how to mend it."""


class TritonStartError(TritonError):
    """tritonserver ended, or was not ready in time.

    Attributes:
        log: the last lines it wrote, oldest first.
    """

    def __init__(self, message: str, log: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log = log
