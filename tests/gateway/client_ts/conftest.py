from __future__ import annotations

from tests.gateway.websocket.conftest import serve, server

__all__ = ["serve", "server"]
