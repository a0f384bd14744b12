"""Who may use the HTTP faces: API keys in headers, and origins of pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from gateway.errors import NotAllowed
from gateway.session.keys import KeyHolder, Keys

_BEARER = "bearer "


def presented_key(headers: Mapping[str, str]) -> str | None:
    """The key of `Authorization: Bearer KEY` or `X-API-Key: KEY`. Header names match in any case."""
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    return headers.get("x-api-key")


def key_holder(keys: Keys, headers: Mapping[str, str]) -> KeyHolder | None:
    """Who calls; None where no keys are needed. Raises Unauthorized."""
    return keys.check(presented_key(headers))


def check_origin(headers: Mapping[str, str], allowed: Iterable[str] = ()) -> None:
    """Refuses pages that may not call; see `origin_allowed`. Raises NotAllowed.

    A page need not be able to read the answer to do harm: browsers send many a request without asking first.
    """
    origin = headers.get("origin")
    if not origin_allowed(origin, headers.get("host"), allowed):
        raise NotAllowed(f"pages of {origin} may not call here")


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a page of `origin` may call: our own pages may (same host), and those the operator names; `*` is all.

    A request without an origin does not come from a page.
    """
    if origin is None or any(name in ("*", origin) for name in allowed):
        return True
    try:
        own = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return own != "" and host is not None and own == host.lower()
