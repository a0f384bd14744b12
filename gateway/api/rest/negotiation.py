"""Content negotiation between WAV and JSON by the Accept header (RFC 9110 section 12.5.1)."""

from __future__ import annotations

from collections.abc import Iterable

_JSON = ("application/json", "application/*", "*/*")
_WAV = ("audio/wav", "audio/*", "*/*")


def prefers_json(accept: Iterable[str]) -> bool:
    """Return whether JSON has a higher quality than WAV, or the same and a more specific range. Default: WAV."""
    ranges = dict(_range(part) for header in accept for part in header.split(",") if part.strip())
    json, wav = _weight(ranges, _JSON), _weight(ranges, _WAV)
    return json > wav and json[0] > 0


def _weight(ranges: dict[str, float], names: tuple[str, ...]) -> tuple[float, int]:
    """Return the quality of the most specific range that matches, and its specificity (0 is the highest)."""
    for position, name in enumerate(names):
        if name in ranges:
            return ranges[name], -position
    return 0.0, -len(names)


def _range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
    try:
        return name, float(quality)
    except ValueError:
        return name, 0.0
