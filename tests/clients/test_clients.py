"""Unmodified clients of other projects hold calls against this server.

The fake engine speaks at known times; `tests/end_to_end/test_live.py` has calls on models.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.clients.conftest import PATIENCE_S, QUESTION, python_of, run_client, run_node
from tests.gateway.openai.conftest import Serve
from tests.gateway.websocket.conftest import Server
from tests.series import total

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LIVE = "/v1/live/sessions"
CLIENTS_PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
IDLE_LEVEL = 80 / 32768
"""Noise below -50 dBFS: opens LiveKit's and Pipecat's gates for ever if it is sent."""


@asynccontextmanager
async def talking(serve: Serve, *speech: tuple[float, float], **settings: Any) -> AsyncIterator[Server]:
    """A server whose agent speaks in the spans of seconds after the first session's start, and is idle otherwise."""
    async with serve(live_speed=1, **settings) as server:
        server.engine.mute, server.engine.floor = True, IDLE_LEVEL

        async def direct() -> None:
            while not server.engine.prefills:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            began = monotonic()
            for start, end in speech:
                await asyncio.sleep(began + start - monotonic())
                server.engine.mute = False
                await asyncio.sleep(began + end - monotonic())
                server.engine.mute = True

        directing = asyncio.create_task(direct())
        yield server
        directing.cancel()


def example_of(package: str, server: Server, folder: Path) -> Path:
    """The example of the documentation that imports a package, with the address of the server."""
    (text,) = re.findall(rf"```python\n(from {package}\..*?)```", CLIENTS_PAGE.read_text(), re.DOTALL)
    example = folder / "example.py"
    example.write_text(text.replace("127.0.0.1:8998", server.url.removeprefix("ws://")))
    return example


class TestLiveKit:
    async def call(self, server: Server, *arguments: object) -> dict[str, Any]:
        url = server.url.replace("ws", "http", 1) + "/v1"
        return await run_client(python_of("livekit"), "livekit_session.py", "live", url, QUESTION, *arguments)

    async def test_a_call_has_a_burst_per_utterance(self, serve: Serve, spoken: list[str]) -> None:
        async with talking(serve, (2, 4), (6, 7)) as server:
            found = await self.call(server, 10)
            began = monotonic()
            await server.until_free()
        assert monotonic() - began < 1
        assert found["bursts"] == 2
        assert found["errors"] == []
        # Each burst is the speech and the 0.8 s after which LiveKit's gate closes.
        assert found["audio_seconds"] == pytest.approx(3 + 2 * 0.8, abs=1)
        assert found["states"][-3:].count("speaking") >= 1
        assert found["states"][-1] == "listening"
        said = "".join(text for role, text in found["items"] if role == "assistant")
        assert said.replace(" ", "") == "".join(spoken).replace(" ", "") != ""
        assert found["close_seconds"] < 1

    async def test_the_agent_of_the_documentation(self, serve: Serve, tmp_path: Path) -> None:
        """It stands between a LiveKit server, with its WebRTC, and this one. Here it has no room."""
        async with talking(serve, (2, 4)) as server:
            example = example_of("livekit", server, tmp_path)
            found = await run_client(python_of("livekit"), "livekit_session.py", example, "", QUESTION, 6)
        assert (found["bursts"], found["errors"]) == (1, [])
        assert found["audio_seconds"] == pytest.approx(2 + 0.8, abs=0.8)

    async def test_a_reply_that_is_requested_is_what_the_agent_says_next(self, serve: Serve) -> None:
        """LiveKit asks for it by a commentary, whose refusal does not end the call."""
        async with talking(serve, (1, 2)) as server:
            found = await self.call(server, 6, "reply", "Greet the caller.")
        assert (found["replied"], found["bursts"], found["closed"]) == (True, 1, "user_initiated")
        (error,) = found["errors"]
        assert "recoverable=True" in error

    async def test_forced_speech(self, serve: Serve) -> None:
        async with talking(serve, forced_speech=True) as server:
            found = await self.call(server, 8, "say", "Hello this is Ana speaking.")
        assert (found["errors"], found["bursts"]) == ([], 1)
        assert [text.strip() for _, text in found["items"]] == ["Hello this is Ana speaking."]

    async def test_a_call_goes_on_after_the_models_failed(self, serve: Serve) -> None:
        """LiveKit connects again, with what was said so far as history."""
        async with talking(serve, (1, 2), (8, 9)) as server:
            calling = asyncio.create_task(self.call(server, 12))
            async with asyncio.timeout(PATIENCE_S):
                while not server.engine.prefills:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(4)
            server.engine.down = True
            await server.until_free()
            server.engine.down = False
            found = await calling
            prompts = len(server.engine.prefills)
        assert (found["bursts"], found["closed"], prompts) == (2, "user_initiated", 2)
        assert all("recoverable=True" in error for error in found["errors"])

    async def test_an_idle_agent_never_speaks(self, serve: Serve) -> None:
        async with talking(serve) as server:
            found = await self.call(server, 6)
        assert (found["bursts"], found["audio_seconds"], found["items"], found["errors"]) == (0, 0, [], [])

    async def test_a_full_server_ends_the_session_after_a_few_attempts(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            found = await self.call(server, 15)
            refused = total(server.runtime.metrics, "personaplex_refused_total", reason="capacity")
        assert found["closed"] == "error"
        assert 1 <= refused <= 5

    async def test_a_drain_is_no_hot_loop(self, serve: Serve) -> None:
        async with talking(serve, drain_seconds=0) as server:
            calling = asyncio.create_task(self.call(server, 15))
            async with asyncio.timeout(PATIENCE_S):
                while not server.runtime.admission.taken:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            draining = asyncio.create_task(server.runtime.sessions.drain())
            found = await calling
            await draining
            refused = total(server.runtime.metrics, "personaplex_refused_total", reason="draining")
        assert found["closed"] == "error"
        assert 1 <= refused <= 5


class TestPipecat:
    async def call(self, server: Server, *arguments: object) -> dict[str, Any]:
        return await run_client(
            python_of("pipecat"), "pipecat_pipeline.py", "live", server.url + LIVE, QUESTION, *arguments
        )

    async def test_a_call_that_starts_late(self, serve: Serve, spoken: list[str]) -> None:
        """The session starts with the first context, 12 s after the socket is open."""
        async with talking(serve, (2, 4), (6, 7)) as server:
            found = await self.call(server, 10, 12)
            await server.until_free()
        assert found["started"]
        assert found["errors"] == []
        assert found["bot"] == ["started", "stopped"] * 2
        assert found["audio_seconds"] == pytest.approx(found["seconds"], rel=0.05)
        assert found["text"].replace(" ", "") == "".join(spoken).replace(" ", "") != ""
        # 10 s without `session.closed`.
        assert found["close_seconds"] < 3

    async def test_the_bot_of_the_documentation(self, serve: Serve, tmp_path: Path) -> None:
        """It takes WebRTC calls. Here it has a transport without a network."""
        async with talking(serve, (2, 4)) as server:
            example = example_of("pipecat", server, tmp_path)
            found = await run_client(python_of("pipecat"), "pipecat_bot.py", example, QUESTION, 6)
            await server.until_free()
        assert found["loud"] == pytest.approx(2.3, abs=0.5)
        assert found["seconds"] == pytest.approx(6, abs=1)

    async def test_a_developer_message_is_refused_and_the_call_goes_on(self, serve: Serve) -> None:
        async with talking(serve, (1, 2)) as server:
            found = await self.call(server, 5, 0, "Greet the caller.")
        (error,) = found["errors"]
        assert not error["fatal"]
        assert "session.commentary.append" in error["error"]
        assert found["audio_seconds"] == pytest.approx(found["seconds"], rel=0.05)

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            found = await self.call(server, 1)
        assert not found["started"]
        assert any("conversations are taken" in error["error"] for error in found["errors"])


class TestLiveKitNvidia:
    async def call(self, server: Server, seconds: float, key: str = "", instructions: str = "") -> dict[str, Any]:
        address = server.url.removeprefix("ws://")
        url = f"ws://user:{key}@{address}/gated" if key else f"ws://{address}/gated"
        return await run_client(python_of("livekit"), "livekit_nvidia.py", url, QUESTION, seconds, instructions)

    async def test_a_call_on_the_gated_path_has_a_generation_per_utterance(
        self, serve: Serve, chat_texts: list[str]
    ) -> None:
        """With the key in the URL."""
        async with talking(serve, (2, 4), (6, 7), api_keys=["K"]) as server:
            found = await self.call(server, 10, "K")
            await server.until_free()
        assert found["errors"] == []
        assert [generation["ended"] for generation in found["generations"]] == [True, True]
        assert "".join(generation["text"] for generation in found["generations"]) == "".join(chat_texts) != ""
        assert [generation["seconds"] for generation in found["generations"]] == pytest.approx([2.3, 1.3], abs=0.5)

    async def test_a_full_server_is_tried_again_after_a_second(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            found = await self.call(server, 5)
            refused = total(server.runtime.metrics, "personaplex_refused_total", reason="capacity")
        assert found["errors"]
        assert all(recoverable for _, recoverable in found["errors"])
        assert 2 <= refused <= 6

    async def test_other_instructions_connect_once_more(self, serve: Serve) -> None:
        async with talking(serve) as server:
            found = await self.call(server, 6, instructions="You are Bo.")
            await server.until_free()
            prompts = [[token for token in prefix.steps[:, 0] if token != 3] for prefix in server.engine.prefills]
            encode = server.runtime.tokenizer.encode_prompt
            assert prompts == [encode("You are Ana."), encode("You are Bo.")]
        assert found["errors"] == []


class TestOpenAINode:
    async def test_a_call(self, serve: Serve, spoken: list[str]) -> None:
        """The transcript grouper of the package takes every event."""
        async with talking(serve, (2, 4), (6, 7)) as server:
            found = await run_node("openai_live.mjs", server.url.replace("ws", "http", 1) + "/v1", QUESTION, 10)
            began = monotonic()
            await server.until_free()
        assert monotonic() - began < 1
        assert found["errors"] == []
        assert (found["closed"], found["code"]) == ("close_requested", 1000)
        assert found["audio_seconds"] == pytest.approx(found["seconds"], rel=0.05)
        assert found["text"] == "".join(spoken) != ""
        assert [reason for _, reason in found["segments"]] == ["inactivity", "inactivity"]
        said = "".join(text for text, _ in found["segments"])
        assert said.replace(" ", "") == "".join(spoken).replace(" ", "")

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            found = await run_node("openai_live.mjs", server.url.replace("ws", "http", 1) + "/v1", QUESTION, 1)
        assert found["code"] == 1013
        assert any("conversations are taken" in error for error in found["errors"])


class TestPydanticAI:
    async def call(self, server: Server, seconds: float) -> dict[str, Any]:
        url = server.url.replace("ws", "http", 1) + "/v1"
        return await run_client(python_of("pydantic_ai"), "pydantic_ai_live.py", url, QUESTION, seconds)

    async def test_a_call(self, serve: Serve, spoken: list[str]) -> None:
        async with talking(serve, (2, 4), (6, 7)) as server:
            found = await self.call(server, 10)
            began = monotonic()
            await server.until_free()
        assert monotonic() - began < 1
        assert found["failures"] == []
        assert not any("Error" in event for event in found["events"])
        # It plays what is loud, and the silence that ends it.
        assert found["audio_seconds"] == pytest.approx(3 + 2 * 0.8, abs=1)
        said = "".join(text for speaker, text in found["transcripts"] if speaker == "assistant")
        assert said.replace(" ", "") == "".join(spoken).replace(" ", "") != ""

    async def test_a_full_server_is_an_error(self, serve: Serve) -> None:
        async with talking(serve, slots=1) as server, server.connect() as other:
            await other.send('{"type": "start"}')
            await other.recv()
            with pytest.raises(AssertionError, match="conversations are taken"):
                await self.call(server, 1)
            refused = total(server.runtime.metrics, "personaplex_refused_total", reason="capacity")
        assert refused == 1


class TestDrain:
    """The server drains during a call. What a client makes of it differs; none of them floods the server."""

    @pytest.mark.parametrize("client", ["pipecat", "livekit_nvidia", "openai_node", "pydantic_ai"])
    async def test_no_hot_loop(self, serve: Serve, client: str) -> None:
        base = "http" if client in ("openai_node", "pydantic_ai") else "ws"
        scripts: dict[str, tuple[str, str, list[object]]] = {
            "pipecat": ("pipecat", LIVE, ["pipecat_pipeline.py", "live"]),
            "livekit_nvidia": ("livekit", "/gated", ["livekit_nvidia.py"]),
            "openai_node": ("", "/v1", ["openai_live.mjs"]),
            "pydantic_ai": ("pydantic_ai", "/v1", ["pydantic_ai_live.py"]),
        }
        environment, path, (script, *arguments) = scripts[client]
        async with talking(serve, (0, 20), drain_seconds=0) as server:
            arguments += [server.url.replace("ws", base, 1) + path, QUESTION, 8]
            run = (
                run_client(python_of(environment), str(script), *arguments)
                if environment
                else run_node(str(script), *arguments)
            )
            await survive_a_drain(server, run)
            refused = total(server.runtime.metrics, "personaplex_refused_total", reason="draining")
        # The NVIDIA plugin connects again once a second.
        assert refused <= 10


async def survive_a_drain(server: Server, call: Coroutine[Any, Any, dict[str, Any]]) -> None:
    """Drain the server a second after the call has a slot, and wait until the client ends, in error or not."""
    calling = asyncio.create_task(call)
    async with asyncio.timeout(PATIENCE_S):
        while not server.runtime.admission.taken:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    await server.runtime.sessions.drain()
    with suppress(AssertionError):
        await calling
    await server.until_free()
