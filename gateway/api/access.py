"""Access to the HTTP APIs: API keys in headers, and origins of web pages."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from gateway.errors import NotAllowed
from gateway.session.keys import KeyHolder, Keys

_BEARER = "bearer "
_BASIC = "basic "


def presented_key(headers: Mapping[str, str]) -> str | None:
    """Return the key that the headers carry, or None. Header names match in any case.

    `Authorization: Bearer KEY`; `Authorization: Basic`, with the key as the password, which clients send for URLs with
    user information; `X-API-Key: KEY`; or `api-key: KEY` of clients made for Azure.
    """
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(_BEARER):
        return authorization[len(_BEARER) :].strip()
    if authorization.lower().startswith(_BASIC):
        return _password(authorization[len(_BASIC) :].strip())
    return headers.get("x-api-key") or headers.get("api-key")


def _password(credentials: str) -> str | None:
    """Return the password of RFC 7617 credentials, or None if they are not base64 of UTF-8 or have none."""
    try:
        _, colon, password = a2b_base64(credentials, strict_mode=True).decode().partition(":")
    except ValueError:
        return None
    return password if colon else None


def key_holder(keys: Keys, headers: Mapping[str, str]) -> KeyHolder | None:
    """Return the holder of the request's key, or None if no keys are configured. Raises Unauthorized."""
    return keys.check(presented_key(headers))


def check_origin(headers: Mapping[str, str], allowed: Iterable[str] = ()) -> None:
    """Raise NotAllowed for web pages of other origins; see `origin_allowed`.

    CORS alone does not prevent harm: browsers send simple requests without a preflight.
    """
    origin = headers.get("origin")
    if not origin_allowed(origin, headers.get("host"), allowed):
        raise NotAllowed(f"pages of {origin} may not call here")


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Return whether a page of `origin` may send requests: pages of the same host and of `allowed` may; `*` is all.

    A request without an origin does not come from a web page.
    """
    if origin is None or any(name in ("*", origin) for name in allowed):
        return True
    try:
        own = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    return own != "" and host is not None and own == host.lower()
