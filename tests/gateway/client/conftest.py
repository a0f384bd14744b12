from __future__ import annotations

from tests.gateway.cli.conftest import service

__all__ = ["service"]
