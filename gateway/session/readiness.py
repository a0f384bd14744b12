"""Readiness of the models: probed at most once a second; two failed probes in a row mean not ready."""

from __future__ import annotations

import asyncio
from time import monotonic

from gateway.engine.backend import Backend

# An answer is valid this long, for probes, health checks and silent sessions together.
_PERIOD_S = 1.0
# Pause before the second look.
_SECOND_LOOK_S = 0.1


class Readiness:
    """Shares one probe among all callers. A single failed probe may only be late."""

    def __init__(self, backend: Backend, period: float = _PERIOD_S) -> None:
        """`period`: seconds for which an answer is valid."""
        self.last = False
        """The last answer."""
        self._backend = backend
        self.period = period
        self._asked_at = -period
        self._asking = asyncio.Lock()

    async def ready(self) -> bool:
        """Whether all models can be called."""
        async with self._asking:
            if monotonic() - self._asked_at >= self.period:
                self.last = await self._backend.ready() or await self._second_look()
                self._asked_at = monotonic()
            return self.last

    async def _second_look(self) -> bool:
        await asyncio.sleep(_SECOND_LOOK_S)
        return await self._backend.ready()
