"""API keys: who holds one, and how many conversations each may hold at once and begin per minute."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from gateway.errors import TooManyForKey, Unauthorized
from gateway.file_watch import FileWatch
from gateway.session.keys_file import KeyEntry, KeysFileError, read_keys
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class KeyHolder:
    """One key, or several of one name, and its conversations."""

    def __init__(self, name: str, retry_after: int, conversations: int = 0, per_minute: int = 0) -> None:
        """`conversations`: at once; `per_minute`: that begin, up to so many together. 0: no limit."""
        self.name = name
        self.conversations = conversations
        self.per_minute = per_minute
        self.held = 0
        self._retry_after = retry_after
        self._begun = 0.0
        """Conversations that count against `per_minute`; they fade at that rate."""
        self._begun_at = monotonic()

    def take(self) -> None:
        """Count a new conversation. Raises TooManyForKey."""
        if self.conversations and self.held >= self.conversations:
            raise TooManyForKey(f"hold {self.conversations} conversations at once, and does", self._retry_after)
        if self.per_minute:
            now = monotonic()
            self._begun = max(0.0, self._begun - (now - self._begun_at) * self.per_minute / 60)
            self._begun_at = now
            if self._begun > self.per_minute - 1:
                raise TooManyForKey(f"begin {self.per_minute} conversations per minute, and has", self._retry_after)
            self._begun += 1
        self.held += 1

    def give_back(self) -> None:
        """Count the end of a conversation."""
        self.held -= 1


class Keys:
    """The keys of the settings and of a file, which is read again when it changes. Without any, requests need none."""

    def __init__(
        self,
        keys: Sequence[str],
        file: Path | None,
        conversations: int,
        per_minute: int,
        retry_after: int,
        metrics: Metrics,
    ) -> None:
        """`conversations`, `per_minute`: limits of keys that have none of their own. Raises KeysFileError."""
        self._file = file
        self._conversations = conversations
        self._per_minute = per_minute
        self._retry_after = retry_after
        self._metrics = metrics
        self._holders: dict[str, KeyHolder] = {}
        self._configured = {
            _digest(key.encode()): self._holder(f"key{number}", None, None) for number, key in enumerate(keys, 1)
        }
        self._by_digest = dict(self._configured)
        if file is not None:
            self._watch = FileWatch(file)
            self._use(read_keys(file))

    def check(self, presented: str | None) -> KeyHolder | None:
        """Return the holder of a key, or None if no keys are configured. Raises Unauthorized.

        Keys are found by their SHA-256, so that response times reveal nothing about them.
        """
        if self._file is not None:
            self._reload(self._file)
        elif not self._by_digest:
            return None
        for form in _encodings(presented) if presented else ():
            if (holder := self._by_digest.get(_digest(form))) is not None:
                return holder
        raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")

    def _reload(self, file: Path) -> None:
        """Read the file again if it has changed. If it cannot be used, the keys stay as they are."""
        if not self._watch.changed():
            return
        try:
            self._use(read_keys(file))
        except KeysFileError as error:
            logger.error("the API keys stay as they were: %s", error.message)
        else:
            logger.info("read %d API keys from %s", len(self._by_digest), file)

    def _use(self, entries: list[KeyEntry]) -> None:
        by_digest = dict(self._configured)
        for entry in entries:
            holder = self._holder(entry.name, entry.conversations, entry.per_minute)
            by_digest.update((bytes.fromhex(digest), holder) for digest in entry.sha256)
        self._by_digest = by_digest

    def _holder(self, name: str, conversations: int | None, per_minute: int | None) -> KeyHolder:
        """Return the holder of a name; it keeps its conversations when the limits change."""
        if name not in self._holders:
            self._holders[name] = KeyHolder(name, self._retry_after)
            # A series that begins at its first event has no rate until the second.
            self._metrics.key_conversations.labels(name)
            self._metrics.key_audio_seconds.labels(name)
        holder = self._holders[name]
        holder.conversations = self._conversations if conversations is None else conversations
        holder.per_minute = self._per_minute if per_minute is None else per_minute
        return holder


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _encodings(presented: str) -> list[bytes]:
    """Return the bytes that a client may have sent.

    Header values arrive decoded as Latin-1, whatever the client's encoding: UTF-8 of most clients, Latin-1 of others.
    gRPC metadata and subprotocols have ASCII characters only.
    """
    encodings = [presented.encode(errors="surrogateescape")]
    with suppress(UnicodeEncodeError):
        encodings.append(presented.encode("latin-1"))
    return encodings
