"""API keys, and the number of conversations that each may hold at once."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from contextlib import suppress

from gateway.errors import TooManyForKey, Unauthorized


class KeyHolder:
    """Counts the conversations of one API key."""

    def __init__(self, limit: int, retry_after: int) -> None:
        """`limit`: conversations at once, 0 for no limit."""
        self._limit = limit
        self._retry_after = retry_after
        self.held = 0

    def take(self) -> None:
        """Count a new conversation. Raises TooManyForKey."""
        if self._limit and self.held >= self._limit:
            raise TooManyForKey(self._limit, self._retry_after)
        self.held += 1

    def give_back(self) -> None:
        """Count the end of a conversation."""
        self.held -= 1


def _encodings(presented: str) -> list[bytes]:
    """Return the bytes that a client may have sent.

    Header values arrive decoded as Latin-1, whatever the client's encoding: UTF-8 of most clients, Latin-1 of others.
    gRPC metadata and subprotocols have ASCII characters only.
    """
    encodings = [presented.encode(errors="surrogateescape")]
    with suppress(UnicodeEncodeError):
        encodings.append(presented.encode("latin-1"))
    return encodings


class Keys:
    """The configured keys. Without any, requests need none."""

    def __init__(self, keys: Sequence[str], limit: int, retry_after: int) -> None:
        self._holders = [(key.encode(), KeyHolder(limit, retry_after)) for key in keys]

    def check(self, presented: str | None) -> KeyHolder | None:
        """Return the holder of a key, or None if no keys are configured. Raises Unauthorized.

        All keys are compared, each in constant time, so that response times reveal nothing about keys.
        """
        if not self._holders:
            return None
        found = None
        for key, holder in self._holders:
            if presented and any(hmac.compare_digest(key, form) for form in _encodings(presented)):
                found = holder
        if found is None:
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        return found
