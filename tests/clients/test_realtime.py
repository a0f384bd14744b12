"""Unmodified clients of the OpenAI Realtime API hold calls against this server, whose agent speaks at known times.

The recorded question lasts 6.3 s, so that the user speaks while the agent begins to.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest

from tests.clients.conftest import PATIENCE_S, QUESTION, python_of, run_client, run_node
from tests.clients.test_clients import survive_a_drain, talking
from tests.gateway.openai.conftest import REALTIME_PATH, Serve
from tests.gateway.websocket.conftest import Server
from tests.series import total

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SPEECH = ((2, 4), (6, 7))
SPOKEN_S = 3 + 2 * 0.64
"""Seconds of audio in the two responses: the speech and the silence that ends each."""


async def call(server: Server, client: str, *arguments: object) -> dict[str, Any]:
    """A call; the slot is free within a second of its end."""
    url = server.url + REALTIME_PATH
    if client == "livekit":
        script: list[object] = ["livekit_session.py", "realtime", server.url.replace("ws", "http", 1) + "/v1", QUESTION]
    elif client == "openai_agents":
        script = ["openai_agents.py", url, QUESTION]
    else:
        script = ["pipecat_pipeline.py", client, url, QUESTION]
    environment = "pipecat" if client.startswith("realtime") else client
    found = await run_client(python_of(environment), *script, *arguments)  # type: ignore[arg-type]
    began = monotonic()
    await server.until_free()
    assert monotonic() - began < 1
    return found


def without_spaces(*texts: str) -> str:
    return "".join(texts).replace(" ", "")


def refused(server: Server, reason: str) -> float:
    """How often the server has refused a session."""
    return total(server.runtime.metrics, "personaplex_refused_total", api="realtime", reason=reason)


class TestLiveKit:
    async def test_a_call_has_a_generation_per_utterance(self, serve: Serve, realtime_texts: list[str]) -> None:
        async with talking(serve, *SPEECH) as server:
            found = await call(server, "livekit", 10)
        assert found["errors"] == []
        assert found["bursts"] == 2
        assert found["audio_seconds"] == pytest.approx(SPOKEN_S, abs=0.5)
        assert found["states"][-1] == "listening"
        said = [text for role, text in found["items"] if role == "assistant"]
        assert len(said) == 2
        assert without_spaces(*said) == without_spaces(*realtime_texts) != ""
        assert found["close_seconds"] < 1

    async def test_a_reply_that_is_requested_is_what_the_agent_says_next(self, serve: Serve) -> None:
        async with talking(serve, (1, 2)) as server:
            found = await call(server, "livekit", 6, "reply", "Greet the caller.")
        assert (found["replied"], found["errors"], found["bursts"]) == (True, [], 1)

    async def test_an_idle_agent_never_speaks(self, serve: Serve) -> None:
        async with talking(serve) as server:
            found = await call(server, "livekit", 6)
        assert (found["bursts"], found["audio_seconds"], found["items"], found["errors"]) == (0, 0, [], [])

    async def test_a_full_server_is_given_up_after_a_few_attempts(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server:
            async with server.connect() as other:
                await other.send('{"type": "start"}')
                await other.recv()
                found = await run_client(
                    python_of("livekit"), "livekit_session.py", "realtime",
                    server.url.replace("ws", "http", 1) + "/v1", QUESTION, 15,
                )  # fmt: skip
            assert "recoverable=False" in found["errors"][-1]
            assert 1 <= refused(server, "capacity") <= 5

    async def test_a_drain_is_no_hot_loop(self, serve: Serve) -> None:
        async with talking(serve, drain_seconds=0) as server:
            calling = asyncio.create_task(call(server, "livekit", 15))
            async with asyncio.timeout(PATIENCE_S):
                while not server.runtime.admission.taken:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            draining = asyncio.create_task(server.runtime.sessions.drain())
            found = await calling
            await draining
            assert "recoverable=False" in found["errors"][-1]
            assert 1 <= refused(server, "draining") <= 5


class TestPipecat:
    @pytest.mark.parametrize("start_after", [0, 12])
    async def test_a_call_has_a_message_per_utterance(
        self, serve: Serve, realtime_texts: list[str], start_after: float
    ) -> None:
        """The session starts with the first audio, up to 12 s after the socket is open."""
        async with talking(serve, *SPEECH) as server:
            found = await call(server, "realtime", 10, start_after)
        assert found["errors"] == []
        assert found["bot"] == ["started", "stopped"] * 2
        assert found["audio_seconds"] == pytest.approx(SPOKEN_S, abs=0.5)
        assert without_spaces(found["text"]) == without_spaces(*realtime_texts) != ""
        assert len(found["assistant"]) == 2
        assert without_spaces(*found["assistant"]) == without_spaces(*realtime_texts)
        assert found["close_seconds"] < 3

    async def test_interruptions_leave_the_audio_flowing(self, serve: Serve) -> None:
        """Each sends `clear`, the latest audio again, `cancel`, and `truncate`: Pipecat does not survive an `error`."""
        async with talking(serve, (1, 9)) as server:
            found = await call(server, "realtime-manual", 10)
        assert found["errors"] == []
        # Each of the 8 interruptions loses 0.4 s.
        assert found["audio_seconds"] == pytest.approx(8.6 - 8 * 0.4, abs=1)

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server:
            async with server.connect() as other:
                await other.send('{"type": "start"}')
                await other.recv()
                found = await run_client(
                    python_of("pipecat"), "pipecat_pipeline.py", "realtime", server.url + REALTIME_PATH, QUESTION, 3
                )
            assert any("HTTP 503" in error["error"] for error in found["errors"])
            assert refused(server, "capacity") == 1


class TestOpenAIAgents:
    async def test_a_call_has_a_turn_per_utterance(self, serve: Serve, realtime_texts: list[str]) -> None:
        async with talking(serve, *SPEECH) as server:
            found = await call(server, "openai_agents", 10)
        assert found["errors"] == []
        assert found["bursts"] == 2
        assert found["audio_seconds"] == pytest.approx(SPOKEN_S, abs=0.5)
        assert without_spaces(*found["assistant"]) == without_spaces(*realtime_texts) != ""

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            with pytest.raises(AssertionError, match="HTTP 503"):
                await run_client(
                    python_of("openai_agents"), "openai_agents.py", server.url + REALTIME_PATH, QUESTION, 1
                )
            assert refused(server, "capacity") == 1


class TestOpenAIAgentsJs:
    async def test_a_call_has_a_turn_per_utterance(self, serve: Serve, realtime_texts: list[str]) -> None:
        async with talking(serve, *SPEECH) as server:
            found = await run_node("openai_agents.mjs", server.url + REALTIME_PATH, QUESTION, 10)
            began = monotonic()
            await server.until_free()
        assert monotonic() - began < 1
        assert found["errors"] == []
        assert found["bursts"] == 2
        assert found["audio_seconds"] == pytest.approx(SPOKEN_S, abs=0.5)
        assert without_spaces(*found["assistant"]) == without_spaces(*realtime_texts) != ""

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            with pytest.raises(AssertionError, match="503"):
                await run_node("openai_agents.mjs", server.url + REALTIME_PATH, QUESTION, 1)
            assert refused(server, "capacity") == 1


class TestOpenAINode:
    async def test_a_call_over_tls(
        self, serve: Serve, realtime_texts: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It connects to no address without TLS."""
        certificate, key = (QUESTION.with_name(name) for name in ("localhost.pem", "localhost-key.pem"))
        monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(certificate))
        async with talking(serve, *SPEECH, tls_certificate=certificate, tls_key=key) as server:
            url = f"https://localhost:{server.url.rpartition(':')[2]}/v1"
            found = await run_node("openai_realtime.mjs", url, QUESTION, 10)
            await server.until_free()
        assert (found["errors"], found["bursts"]) == ([], 2)
        assert found["audio_seconds"] == pytest.approx(SPOKEN_S, abs=0.5)
        assert found["text"] == "".join(realtime_texts) != ""


class TestDrain:
    """The server drains during a call. No client connects again."""

    @pytest.mark.parametrize("client", ["pipecat", "openai_agents", "openai_agents_js"])
    async def test_no_hot_loop(self, serve: Serve, client: str) -> None:
        scripts: dict[str, list[object]] = {
            "pipecat": ["pipecat_pipeline.py", "realtime"],
            "openai_agents": ["openai_agents.py"],
            "openai_agents_js": ["openai_agents.mjs"],
        }
        script, *arguments = scripts[client]
        async with talking(serve, (0, 20), drain_seconds=0) as server:
            arguments += [server.url + REALTIME_PATH, QUESTION, 8]
            if client == "openai_agents_js":
                await survive_a_drain(server, run_node(str(script), *arguments))
            else:
                await survive_a_drain(server, run_client(python_of(client), str(script), *arguments))
            assert refused(server, "draining") == 0
