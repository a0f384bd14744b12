"""Take base64 audio out of a JSON body while it arrives.

A JSON parser holds the GIL for the whole document, 120 ms for 64 MiB. Here the strings of audio fields are decoded in
small pieces as they come and replaced by a token; only the small rest is parsed.
"""

from __future__ import annotations

import io
import json
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from secrets import token_hex

from gateway.errors import PayloadTooLarge

AUDIO_FIELDS = ("audio", "voice_audio")
MAX_REST = 320 * 2**10
"""Bytes of a body without its audio: a text prompt of escaped characters has 240 kB."""

_AUDIO_STRING = re.compile(rb'[{,]\s*"(?:%s)"\s*:\s*"\Z' % "|".join(AUDIO_FIELDS).encode())
_LOOK_BEHIND = 64
# Up to the closing quote or the end of the data; possessive, so that no input makes it backtrack.
_STRING_PART = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_LONGEST_ESCAPE = len(rb"\u0000")


class Base64File:
    """Base64 text that is decoded as it arrives. `file` holds the bytes; None if the text is not base64."""

    def __init__(self) -> None:
        self.file: io.BytesIO | None = io.BytesIO()
        self._rest = b""
        self._padded = False

    def write(self, text: bytes) -> None:
        """Decode more text."""
        if self.file is None or not text:
            return
        text = self._rest + text
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        try:
            if whole and self._padded:
                raise Base64Error
            if whole:
                self._padded = text.endswith(b"=", 0, whole)
            self.file.write(a2b_base64(text[:whole], strict_mode=True))
        except Base64Error:
            self.file = None

    def finish(self) -> None:
        """The text is complete."""
        if self._rest:
            self.file = None


class JsonBody:
    """A JSON document that arrives in pieces: `rest` has tokens in place of the audio, `files` the audio by token."""

    def __init__(self) -> None:
        self.rest = bytearray()
        self.files: dict[str, Base64File] = {}
        self._in_string = False
        self._audio: Base64File | None = None
        self._pending = b""

    def write(self, data: bytes) -> None:
        """Take the next bytes; a piece of 64 KiB occupies the caller for less than 1 ms. Raises PayloadTooLarge."""
        data = self._pending + data
        self._pending = b""
        at = 0
        while at < len(data):
            if not self._in_string:
                quote = data.find(b'"', at)
                end = len(data) if quote < 0 else quote + 1
                self._keep(data[at:end])
                if quote >= 0:
                    self._begin_string()
                at = end
                continue
            end = _STRING_PART.match(data, at).end()  # type: ignore[union-attr]
            closed = data[end : end + 1] == b'"'
            if not closed:
                # An escape may continue in the next piece.
                end = _before_last_escape(data, at, end)
            self._string_part(data[at:end])
            at = end
            if not closed:
                self._pending = data[end:]
                break
            self._end_string()
            at += 1

    def document(self) -> bytes:
        """The document with tokens in place of the audio, once all bytes were written."""
        self._keep(self._pending)
        self._pending = b""
        return bytes(self.rest)

    def _begin_string(self) -> None:
        self._in_string = True
        before = self.rest[-_LOOK_BEHIND:]
        if b'audio"' in before and _AUDIO_STRING.search(before):
            token = token_hex(16)
            self._audio = self.files[token] = Base64File()
            self._keep(token.encode())

    def _string_part(self, part: bytes) -> None:
        if self._audio is None:
            self._keep(part)
            return
        if b"\\" in part:
            # Encoders write / as \/ and + as \u002B.
            try:
                part = json.loads(b'"' + part + b'"').encode("ascii")
            except ValueError:
                self._audio.file = None
                return
        self._audio.write(part)

    def _end_string(self) -> None:
        self._in_string = False
        if self._audio is not None:
            self._audio.finish()
            self._audio = None
        self._keep(b'"')

    def _keep(self, part: bytes) -> None:
        if len(self.rest) + len(part) > MAX_REST:
            raise PayloadTooLarge(f"expected at most {MAX_REST} bytes besides audio")
        self.rest += part


def _before_last_escape(data: bytes, begin: int, end: int) -> int:
    """Where the last escape begins that may not be complete at `end`; `end` if there is none."""
    last = data.rfind(b"\\", max(begin, end - 2 * _LONGEST_ESCAPE), len(data))
    if last < 0:
        return end
    # Of a run of backslashes each second one is escaped.
    run = last
    while run > begin and data[run - 1 : run] == b"\\":
        run -= 1
    first = last if (last - run) % 2 == 0 else last - 1
    return first if len(data) - first < 2 * _LONGEST_ESCAPE else end
