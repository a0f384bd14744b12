"""The operator API: on its own listener, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.admin_address import AdminAddress, admin_address, runtime_folder
from gateway.api.admin.app import create_admin_app
from gateway.app import create_app
from gateway.cli import run
from gateway.server import GatewayServer
from gateway.settings import Settings

Ask = Callable[..., Any]
PATHS = [
    ("GET", "/admin/status"),
    ("POST", "/admin/drain"),
    ("POST", "/admin/undrain"),
    ("GET", "/admin/sessions"),
    ("DELETE", "/admin/sessions/x"),
]


@pytest.fixture
async def admin(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_admin_app(app.state.runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("headers", [{}, {"host": "127.0.0.1:8998"}, {"x-forwarded-for": "127.0.0.1"}])
async def test_the_public_api_has_no_operator_routes(client, app, method, path, headers):
    assert (await client.request(method, path, headers=headers)).status_code == 404
    assert not app.state.runtime.sessions.draining


async def test_a_drain_can_be_undone(admin, client, ask: Ask):
    drained = await admin.post("/admin/drain")
    assert (drained.status_code, drained.json()["status"], drained.json()["ready"]) == (202, "draining", False)
    assert (await ask()).status_code == 503
    assert (await client.get("/readyz")).status_code == 503
    undone = await admin.post("/admin/undrain")
    assert (undone.status_code, undone.json()["status"], undone.json()["ready"]) == (200, "serving", True)
    assert (await ask()).status_code == 200
    assert (await client.get("/readyz")).status_code == 200


async def test_an_undone_drain_ends_no_session_later(admin, app, ask: Ask, engine, settings):
    settings.drain_seconds = 0.1
    engine.delay = 0.02
    answer = asyncio.create_task(ask(max_steps=10))
    await asyncio.sleep(0.05)
    await admin.post("/admin/drain")
    await admin.post("/admin/undrain")
    assert (await answer).status_code == 200


async def test_the_drain_of_a_stopping_server_cannot_be_undone(admin, app):
    stopping = asyncio.create_task(app.state.runtime.sessions.drain())
    await asyncio.sleep(0)
    assert (await admin.post("/admin/undrain")).status_code == 403
    await stopping


async def test_status_states_the_slots(admin, ask: Ask):
    before = (await admin.get("/admin/status")).json()
    assert (before["slots"], before["active"], before["free"]) == (2, 0, 2)
    await ask(keep=True)
    after = (await admin.get("/admin/status")).json()
    assert (after["active"], after["free"]) == (1, 1)


async def test_sessions_are_listed_and_ended(admin, app, ask: Ask, engine):
    kept = (await ask(keep=True, voice="NATM1")).json()["conversation_id"]
    engine.delay = 0.02
    answer = asyncio.create_task(ask(max_steps=400))
    await asyncio.sleep(0.05)
    turn, recorded = (await admin.get("/admin/sessions")).json()["sessions"]
    assert (turn["id"], turn["kind"], turn["api"], turn["voice"]) == (kept, "turn", "rest", "NATM1")
    assert (recorded["kind"], recorded["api"], recorded["voice"]) == ("recorded", "rest", "NATF0")
    for session in (turn, recorded):
        assert (await admin.delete(f"/admin/sessions/{session['id']}")).status_code == 204
    assert (await answer).status_code == 503
    async with asyncio.timeout(2):
        await app.state.runtime.admission.empty.wait()
    assert (await ask(conversation_id=kept)).status_code == 404
    assert (await admin.get("/admin/sessions")).json() == {"sessions": []}
    assert (await admin.delete(f"/admin/sessions/{kept}")).status_code == 404


async def test_a_turn_in_progress_is_ended_with_its_session(admin, app, ask: Ask, engine):
    kept = (await ask(keep=True)).json()["conversation_id"]
    engine.delay = 0.02
    answer = asyncio.create_task(ask(max_steps=400, conversation_id=kept))
    await asyncio.sleep(0.05)
    (turn,) = (await admin.get("/admin/sessions")).json()["sessions"]
    assert turn["id"] == kept
    await admin.delete(f"/admin/sessions/{kept}")
    assert (await answer).status_code == 503
    async with asyncio.timeout(2):
        await app.state.runtime.admission.empty.wait()


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "gateway.attacker.example"},
        {"host": "gateway.attacker.example:8998"},
        {"origin": "http://localhost"},
        {"sec-fetch-site": "same-origin"},
    ],
)
@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_web_pages_and_other_host_names_are_rejected(admin, app, method, path, headers):
    assert (await admin.request(method, path, headers=headers)).status_code == 403
    assert not app.state.runtime.sessions.draining


@pytest.fixture
def up(models, manifest, engine):
    @asynccontextmanager
    async def serve(**settings: Any) -> AsyncIterator[GatewayServer]:
        configured = Settings(models=models, grpc_port=-1, **settings)
        server = GatewayServer(create_app(configured, engine, manifest), configured)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server._serve([listener]))
            while not server.started and not serving.done():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            try:
                yield server
            finally:
                server.hurry()
                server.should_exit = True
                await serving

    return serve


async def test_the_socket_is_private_and_removed_at_the_end(up, tmp_path):
    path = tmp_path / "admin.sock"
    async with up(admin_listen=str(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client:
            assert (await client.get("http://localhost/admin/status")).json()["status"] == "serving"
    assert not path.exists()


async def test_the_socket_of_a_killed_server_is_replaced(up, tmp_path):
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with up(admin_listen=str(path)) as server:
        assert server.admin is not None


async def test_an_address_in_use_ends_the_server(up, tmp_path, caplog):
    path = tmp_path / "admin.sock"
    async with up(admin_listen=str(path)), up(admin_listen=str(path)) as second:
        assert second.should_exit
        assert f"cannot listen on {path} for the operator API: another server listens there" in caplog.text


async def test_the_admin_commands_use_it(up, tmp_path, capsys):
    async with up(admin_listen=str(tmp_path / "admin.sock")) as server:

        async def personaplex(*arguments: str) -> tuple[int, str]:
            code = await asyncio.to_thread(run, ["admin", *arguments, "--listen", str(tmp_path / "admin.sock")])
            return code, capsys.readouterr().out

        code, out = await personaplex("drain")
        assert (code, json.loads(out)["status"]) == (0, "draining")
        assert server._runtime.sessions.draining
        code, out = await personaplex("undrain")
        assert (code, json.loads(out)["status"]) == (0, "serving")
        assert json.loads((await personaplex("status"))[1])["free"] == 2
        assert json.loads((await personaplex("sessions"))[1]) == {"sessions": []}
        assert (await personaplex("end", "x"))[0] == 2


async def test_by_default_it_is_a_socket_in_a_private_folder_named_by_the_port(up, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with up() as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        path = tmp_path / "personaplex" / f"admin-{port}.sock"
        assert server.admin is not None
        assert server.admin.address == AdminAddress(path=path) == admin_address(None, port)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_folder_writable_by_others_is_not_used(up, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    runtime_folder().mkdir()
    runtime_folder().chmod(0o777)
    async with up() as server:
        assert server.admin is None
        assert not server.should_exit
        assert "not a folder of this user alone" in caplog.text


async def test_the_address_can_be_a_port_or_none(up):
    async with up(admin_listen="127.0.0.1:0") as server:
        assert server.admin is not None
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://{server.admin.address}/admin/status")).status_code == 200
    async with up(admin_listen="none") as server:
        assert server.admin is None


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("/run/x.sock", AdminAddress(path=Path("/run/x.sock"))),
        ("unix:/run/x.sock", AdminAddress(path=Path("/run/x.sock"))),
        ("127.0.0.1:9000", AdminAddress(host="127.0.0.1", port=9000)),
        ("[::1]:9000", AdminAddress(host="::1", port=9000)),
        ("none", None),
    ],
)
def test_addresses(listen, expected):
    assert admin_address(listen, 8998) == expected


@pytest.mark.parametrize("listen", ["", "9000", "host", "host:port", ":70000", "host:70000"])
def test_invalid_addresses_are_rejected(listen):
    with pytest.raises(ValueError, match="admin_listen"):
        admin_address(listen, 8998)
    with pytest.raises(ValueError, match="admin_listen"):
        Settings(admin_listen=listen)


def test_the_default_folder_names_its_user(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert str(os.getuid()) in runtime_folder().name
