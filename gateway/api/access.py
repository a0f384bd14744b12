"""Who may use the HTTP faces: API keys in headers, and origins of pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from gateway.keys import KeyHolder, Keys

_BEARER = "bearer "


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key of `Authorization: Bearer KEY` or `X-API-Key: KEY`; names of headers in any case."""
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")


def key_holder(keys: Keys, headers: Mapping[str, str]) -> KeyHolder | None:
    """Who calls; None where no keys are needed. Raises Unauthorized."""
    return keys.check(presented_key(headers))


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a page of `origin` may call: our own pages may (same host), and those the operator names; `*` is all.

    A request without an origin does not come from a page.
    """
    if origin is None or (host is not None and urlsplit(origin).netloc.lower() == host.lower()):
        return True
    return any(name in ("*", origin) for name in allowed)
