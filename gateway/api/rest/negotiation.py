"""Which of the two kinds of answer a caller wants, by the Accept header (RFC 9110 section 12.5.1)."""

from __future__ import annotations

from collections.abc import Iterable

_JSON = ("application/json", "application/*", "*/*")
_WAV = ("audio/wav", "audio/*", "*/*")


def prefers_json(accept: Iterable[str]) -> bool:
    """Whether JSON is asked for more strongly, or equally but more exactly, than WAV, which is the default."""
    ranges = dict(_range(part) for header in accept for part in header.split(",") if part.strip())
    json, wav = _weight(ranges, _JSON), _weight(ranges, _WAV)
    return json > wav and json[0] > 0


def _weight(ranges: dict[str, float], names: tuple[str, ...]) -> tuple[float, int]:
    """Quality of the most exact range that matches, and how exact it is."""
    for exactness, name in enumerate(names):
        if name in ranges:
            return ranges[name], -exactness
    return 0.0, -len(names)


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0
