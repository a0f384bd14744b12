"""Check the problem details of a rejected request."""

from __future__ import annotations

from typing import Any

import httpx


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:personaplex:{kind}"
    assert body["status"] == status
    assert body["title"]
    assert "\n" not in body["detail"]
    assert "Traceback" not in answer.text
    return body
