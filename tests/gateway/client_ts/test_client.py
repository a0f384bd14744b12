"""The TypeScript client in Node, against the gateway on the fake engine and servers that follow a script."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket

from gateway.session.caller import Caller
from gateway.telemetry.metrics import Api
from tests.gateway.client_ts.conftest import NODE, PACKAGE, Run
from tests.gateway.websocket.conftest import Server
from tests.series import total

ROOT = Path(__file__).parents[3]
FRAMES = 14
READY = {
    "type": "ready",
    "conversation_id": "c",
    "voice": "ANA",
    "seed": 1,
    "audio": {"format": "pcm_s16le", "sample_rate": 24000},
    "frame_size": 1920,
    "setup_ms": 1.5,
    "resume": None,
    "index": 0,
    "missed_text": "",
}
ENDED = {"type": "ended", "reason": "completed", "message": "", "frames": 0, "seconds": 0.0, "transcript": ""}


def sine() -> np.ndarray:
    """What the script says, as a live conversation in s16le sends it."""
    return np.rint(np.sin(np.arange(FRAMES * 1920) / 20) / 3 * 32767).astype("<i2")


def recording() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sine(), 24_000, "PCM_16", format="WAV")
    return file.getvalue()


WAV = base64.b64encode(recording()).decode()


def wav(encoded: str) -> np.ndarray:
    pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
    assert rate == 24_000
    return np.asarray(pcm)


@pytest.mark.parametrize("audio_format", ["pcm_s16le", "pcm_f32le"])
async def test_a_conversation_is_the_recording_of_the_same_audio(server: Server, run: Run, audio_format: str) -> None:
    params = {"seed": 4, "text_prompt": "You are Ana.", "audio": {"format": audio_format}}
    answer = (await run("converse", server.url, params=params, frames=FRAMES))["answer"]
    assert (answer["ready"]["seed"], answer["ready"]["audio"]["format"]) == (4, audio_format)
    events = answer["events"]
    ended = events[-1]
    assert (ended["type"], ended["reason"], ended["dropped_frames"]) == ("ended", "completed", 0)
    audio = [event for event in events if event["type"] == "audio"]
    assert [event["index"] for event in audio] == list(range(ended["frames"]))
    assert "".join(event["text"] for event in events if event["type"] == "text").strip() == ended["transcript"]
    assert {event["type"] for event in events} == {"audio", "text", "stats", "ended"}
    live = np.concatenate([np.frombuffer(base64.b64decode(event["pcm"]), "<f4") for event in audio])
    heard = sine() / 32768 if audio_format == "pcm_s16le" else np.sin(np.arange(FRAMES * 1920) / 20) / 3
    recorded = (await server.offline(heard, FRAMES, seed=4, text_prompt="You are Ana."))["audio"] / 32768
    np.testing.assert_allclose(live[: len(recorded)], recorded, atol=2 / 32768)
    assert np.abs(recorded).max() > 0.01


async def test_a_recording_is_answered_whole_and_in_pieces(server: Server, run: Run) -> None:
    params = {"seed": 4, "max_steps": 20}
    answer = (await run("respond", server.url, wav=WAV, params={**params, "include": ["tokens"]}))["answer"]
    assert (answer["frames"], answer["seed"], len(answer["agent_codes"])) == (20, 4, 20)
    assert answer["timings"]["rtf"] > 0
    streamed = (await run("stream", server.url, wav=WAV, params=params))["answer"]
    assert streamed["pieces"] > 1
    assert np.array_equal(wav(streamed["audio"]), wav(answer["audio"]))


async def test_voices_prompts_and_readiness(server: Server, run: Run) -> None:
    assert (await run("voices", server.url + "/"))["answer"]["default"] == "NATF0"
    assert (await run("systemPrompts", server.url))["answer"]["system_prompts"]
    assert await run("ready", server.url) == {"answer": None}


@pytest.mark.parametrize("kind", ["converse", "respond"])
async def test_refusals_have_the_servers_code_and_message(server: Server, run: Run, kind: str) -> None:
    error = (await run(kind, server.url, wav=WAV, params={"voice": "NOBODY"}))["error"]
    assert (error["name"], error["code"], error["ours"]) == ("ClientError", "unknown-voice", True)
    assert "NOBODY" in error["message"]
    await server.until_free()


async def test_errors_of_the_clients_own(server: Server, run: Run) -> None:
    error = (await run("converse", "http://127.0.0.1:1"))["error"]
    assert error["code"] == "unreachable"
    assert error["message"].startswith("cannot reach http://127.0.0.1:1/")
    error = (await run("converse", server.url, client={"apiKey": "with space"}))["error"]
    assert error["code"] == "key-not-sendable"
    assert server.engine.opened == 0


async def test_leaving_the_loop_or_giving_up_frees_the_slot(server: Server, run: Run) -> None:
    found = (await run("converse", server.url, frames=3, leave=True))["answer"]
    assert found["events"][-1]["type"] == "audio"
    assert (await run("abort", server.url))["error"]["name"] == "AbortError"
    await server.until_free()


async def test_keys_are_sent(serve: Callable[..., Any], run: Run) -> None:
    async with serve(api_keys=["k€y", "key"]) as server:
        assert (await run("voices", server.url, client={"apiKey": "k€y"}))["answer"]
        assert (await run("converse", server.url, client={"apiKey": "key"}))["answer"]["events"]
        assert (await run("converse", server.url))["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_full_server_is_asked_again(serve: Callable[..., Any], run: Run, accepts: bool) -> None:
    async with serve(slots=1, accept_when_full=accepts, retry_after=3) as server:
        slot = server.runtime.admission.acquire(Caller(Api.REST))
        for kind in ("converse", "respond"):
            error = (await run(kind, server.url, wav=WAV))["error"]
            assert (error["name"], error["code"]) == ("ServerBusyError", "at-capacity")
            assert error["retryAfter"] == (1 if kind == "converse" else 3)
        waiting = asyncio.create_task(run("converse", server.url, client={"waitWhenFull": 30}))
        refused = total(server.runtime.metrics, "personaplex_refused_total")
        while total(server.runtime.metrics, "personaplex_refused_total") == refused:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        slot.release()
        assert (await waiting)["answer"]["ready"]["voice"] == "NATF0"


@pytest.mark.parametrize(
    ("messages", "code", "reason", "expected"),
    [
        ([], 1013, "taken", ("ServerBusyError", "at-capacity", "taken")),
        ([], 1012, "", ("ServerBusyError", "draining", "the server is shutting down")),
        ([READY], 1011, "it fails", ("ClientError", "connection-lost", "the connection was lost: it fails")),
        ([ENDED], 1000, "", ("ClientError", "protocol", "expected `ready` first, got ended")),
    ],
)
async def test_a_close_without_an_error(
    run: Run, messages: list[dict[str, Any]], code: int, reason: str, expected: tuple[str, str, str]
) -> None:
    async def handler(connection: ServerConnection) -> None:
        for message in [await connection.recv(), *messages][1:]:
            await connection.send(json.dumps(message))
        await connection.close(code, reason)

    async with serve_websocket(handler, "127.0.0.1", 0, select_subprotocol=lambda _, offered: offered[0]) as scripted:
        port = next(iter(scripted.sockets)).getsockname()[1]
        error = (await run("converse", f"http://127.0.0.1:{port}"))["error"]
    assert (error["name"], error["code"], error["message"]) == expected


async def test_events_of_later_servers_are_passed_on(run: Run) -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        for message in (READY, {"type": "of a later version"}, ENDED):
            await connection.send(json.dumps(message))

    async with serve_websocket(handler, "127.0.0.1", 0, select_subprotocol=lambda _, offered: offered[0]) as scripted:
        port = next(iter(scripted.sockets)).getsockname()[1]
        found = (await run("converse", f"http://127.0.0.1:{port}"))["answer"]
    assert [event["type"] for event in found["events"]] == ["of a later version", "ended"]


def test_the_committed_build_is_that_of_the_sources(tmp_path: Path) -> None:
    compiler = PACKAGE / "node_modules" / "typescript" / "bin" / "tsc"
    if not compiler.exists():
        pytest.skip("the TypeScript compiler is not installed: .ci/node installs it")
    subprocess.run([NODE, compiler, "--project", PACKAGE, "--outDir", tmp_path], check=True, timeout=120)
    built = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (PACKAGE / "dist").iterdir()}
    assert built == committed, "run `npm run build` in gateway/client-ts"


def test_the_package_has_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads((PACKAGE / "package.json").read_text())["version"] == project["version"]
