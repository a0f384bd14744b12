"""Serving of the page's files, which load no external resources."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from gateway import page

ROOT = Path(__file__).parents[2]
PAGE = Path(page.__file__).parent / "static"
CLIENT = ROOT / "gateway" / "client-ts" / "dist"
FILES = [*sorted(path.name for path in PAGE.iterdir()), *sorted(f"client/{path.name}" for path in CLIENT.glob("*.js"))]
REFERENCE = re.compile(r"""(?:href|src)="([^"#]+)"|(?:from|import)\s*\(?"([^"]+)"|new URL\("([^"]+)", import""")


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(page.router())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway")


async def test_the_page_is_at_the_root(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>PersonaPlex</title>" in answer.text
    assert (await client.head("/")).status_code == 200


async def test_the_page_loads_no_external_resources_and_cannot_be_framed(client: httpx.AsyncClient) -> None:
    policy = dict(part.split(" ", 1) for part in (await client.get("/")).headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


async def test_an_unchanged_file_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/page/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = await client.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = await client.get("/page/main.js", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200


@pytest.mark.parametrize("name", ["missing.js", "..%2f__init__.py", "__init__.py", "%00", ""])
async def test_other_paths_are_not_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/page/{name}")).status_code == 404


@pytest.mark.parametrize("name", FILES)
async def test_every_reference_resolves(client: httpx.AsyncClient, name: str) -> None:
    served = await client.get(f"/page/{name}")
    assert served.status_code == 200
    assert served.headers["x-content-type-options"] == "nosniff"
    references = ["".join(groups) for groups in REFERENCE.findall(served.text)]
    assert name not in ("index.html", "main.js") or len(references) >= 4
    folder = "client/" if name.startswith("client/") else ""
    for reference in references:
        assert folder + reference.removeprefix("page/").removeprefix("./") in FILES


def test_every_file_is_packaged() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gateway"]
    for path in (*PAGE.iterdir(), *CLIENT.glob("*.js")):
        assert any(fnmatch(str(path.relative_to(ROOT / "gateway")), pattern) for pattern in patterns)
