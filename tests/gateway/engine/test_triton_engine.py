"""The Triton engine against a gRPC server that speaks Triton's protocol and records what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.conversation.engine import Draw, Thought
from gateway.engine.triton import TritonEngine, TritonSession
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest

DTYPES = {"FP32": np.float32, "INT64": np.int64}
OUTPUTS = {
    "mimi_encoder": {"codes": ("INT64", np.arange(8)[None])},
    # In an order of its own: outputs are found by name.
    "temporal": {"text_token": ("INT64", [[17]]), "hidden": ("FP32", np.arange(32)[None] / 2)},
    "depformer": {"codes": ("INT64", np.arange(8, 16)[None])},
    "mimi_decoder": {"pcm": ("FP32", np.linspace(-1, 1, 1920)[None])},
}
DRAW = Draw(seed=2**62 + 1, position=40, top_k=25, temperature=0.7)


class Server(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every model, and keeps what came."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.not_ready: set[str] = set()
        self.before: Callable[[Any, Any], Awaitable[None]] | None = None

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802 (Triton's name)
        return service_pb2.ServerReadyResponse(ready="server" not in self.not_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802 (Triton's name)
        return service_pb2.ModelReadyResponse(ready=request.name not in self.not_ready)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 (Triton's name)
        if self.before is not None:
            await self.before(request, context)
        parameters = request.parameters
        self.calls.append(
            {
                "model": request.model_name,
                "id": parameters["sequence_id"].string_param if "sequence_id" in parameters else None,
                "start": parameters["sequence_start"].bool_param if "sequence_start" in parameters else None,
                "end": parameters["sequence_end"].bool_param if "sequence_end" in parameters else None,
                **{
                    tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)
                    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
                },
            }
        )
        answer = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, (datatype, value) in OUTPUTS[request.model_name].items():
            array = np.asarray(value, DTYPES[datatype])
            answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


@pytest.fixture
def server() -> Server:
    return Server()


async def listen(server: Server, address: str) -> tuple[grpc.aio.Server, int]:
    listening = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, listening)
    port = listening.add_insecure_port(address)
    await listening.start()
    return listening, port


@pytest.fixture
async def engine(server: Server, manifest: Manifest) -> AsyncIterator[TritonEngine]:
    listening, port = await listen(server, "127.0.0.1:0")
    engine = TritonEngine(f"127.0.0.1:{port}", manifest, step_deadline=1, prefill_deadline=1, release_deadline=1)
    yield engine
    await engine.close()
    await listening.stop(None)


@pytest.fixture
def session(engine: TritonEngine) -> TritonSession:
    return engine.open()


async def whole_frame(session: TritonSession) -> None:
    await session.encode(np.zeros(1920, np.float32))
    thought = await session.prefill(np.ones((3, 17), np.int64), np.zeros((0, 32), np.float32), DRAW)
    await session.depformer(thought, DRAW)
    await session.decode(np.arange(8))


async def test_a_frame_goes_over_the_wire_as_it_is(session: TritonSession, server: Server):
    pcm = np.linspace(-1, 1, 1920).astype(np.float32)
    assert (await session.encode(pcm)).tolist() == list(range(8))
    call = server.calls[-1]
    assert call["model"] == "mimi_encoder"
    assert call["pcm"].shape == (1, 1920)
    assert np.array_equal(call["pcm"][0], pcm)


async def test_a_prefill_carries_every_column_and_embedding(session: TritonSession, server: Server):
    columns = np.arange(5 * 17).reshape(5, 17)
    embeddings = np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)
    thought = await session.prefill(columns, embeddings, DRAW)
    assert thought.text_token == 17
    assert np.array_equal(thought.hidden, np.arange(32) / 2)
    call = server.calls[-1]
    assert np.array_equal(call["columns"][0], columns)
    assert np.array_equal(call["embeddings"][0], embeddings)
    assert call["sampler"].tolist() == [[2**62 + 1, 40, 25]]
    assert call["temperature"].tolist() == [[np.float32(0.7)]]


async def test_a_step_after_a_prefill_carries_one_column_and_no_embedding(session: TritonSession, server: Server):
    await session.prefill(np.ones((5, 17), np.int64), np.zeros((4, 32), np.float32), DRAW)
    await session.step(np.arange(17), DRAW)
    call = server.calls[-1]
    assert call["columns"].shape == (1, 1, 17)
    assert call["columns"].ravel().tolist() == list(range(17))
    assert call["embeddings"].shape == (1, 0, 32)


async def test_the_depformer_gets_the_thought_and_belongs_to_no_sequence(session: TritonSession, server: Server):
    codes = await session.depformer(Thought(np.arange(32, dtype=np.float32), 9), DRAW)
    assert codes.tolist() == list(range(8, 16))
    call = server.calls[-1]
    assert call["hidden"].ravel().tolist() == list(range(32))
    assert call["text_token"].tolist() == [[9]]
    assert call["id"] is None


async def test_the_decoder_gives_samples(session: TritonSession, server: Server):
    pcm = await session.decode(np.arange(8))
    assert pcm.dtype == np.float32
    assert np.array_equal(pcm, np.linspace(-1, 1, 1920).astype(np.float32))
    assert server.calls[-1]["codes"].tolist() == [list(range(8))]


async def test_only_the_first_call_to_each_model_starts_the_sequence(session: TritonSession, server: Server):
    for _ in range(2):
        await whole_frame(session)
    flags = [(call["model"], call["start"], call["end"]) for call in server.calls if call["model"] != "depformer"]
    models = ("mimi_encoder", "temporal", "mimi_decoder")
    assert flags == [(m, True, False) for m in models] + [(m, False, False) for m in models]


async def test_the_stateful_models_share_one_fresh_id(engine: TritonEngine, server: Server):
    first, second = engine.open(), engine.open()
    await whole_frame(first)
    await whole_frame(second)
    ids = [call["id"] for call in server.calls if call["model"] != "depformer"]
    assert set(ids[:3]) == {first.sequence_id}
    assert set(ids[3:]) == {second.sequence_id}
    assert UUID(first.sequence_id).version == UUID(second.sequence_id).version == 4
    assert first.sequence_id != second.sequence_id


async def test_close_ends_each_model_once_with_inputs_of_the_right_shape(session: TritonSession, server: Server):
    await whole_frame(session)
    server.calls.clear()
    await session.close()
    await session.close()
    assert sorted(call["model"] for call in server.calls) == ["mimi_decoder", "mimi_encoder", "temporal"]
    assert all((call["start"], call["end"], call["id"]) == (False, True, session.sequence_id) for call in server.calls)
    shapes = {name: call[name].shape for call in server.calls for name in call if isinstance(call[name], np.ndarray)}
    assert shapes == {
        "pcm": (1, 1920),
        "columns": (1, 1, 17),
        "embeddings": (1, 0, 32),
        "sampler": (1, 3),
        "temperature": (1, 1),
        "codes": (1, 8),
    }


async def test_close_ends_only_what_was_begun(session: TritonSession, server: Server):
    await session.close()
    assert server.calls == []
    other = session._engine.open()
    await other.encode(np.zeros(1920, np.float32))
    await other.close()
    assert [(call["model"], call["end"]) for call in server.calls] == [("mimi_encoder", False), ("mimi_encoder", True)]


async def test_a_cancelled_call_reaches_the_model_whole_and_is_ended_after_it(session: TritonSession, server: Server):
    async def slow(request: Any, context: Any) -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    columns = np.arange(5 * 17).reshape(5, 17)
    task = asyncio.create_task(session.prefill(columns, np.zeros((2, 32), np.float32), DRAW))
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()
    started, ended = server.calls
    assert np.array_equal(started["columns"][0], columns)
    assert (started["start"], started["end"]) == (True, False)
    assert (ended["start"], ended["end"]) == (False, True)
    assert ended["columns"].shape == (1, 1, 17)


async def test_a_cancelled_close_goes_on_and_can_be_waited_for_again(session: TritonSession, server: Server):
    await session.encode(np.zeros(1920, np.float32))

    async def slow(request: Any, context: Any) -> None:
        await asyncio.sleep(0.1)

    server.before = slow
    task = asyncio.create_task(session.close())
    await asyncio.sleep(0.03)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await session.close()
    assert [call["end"] for call in server.calls] == [False, True]


async def test_an_end_that_fails_is_logged_and_not_raised(
    session: TritonSession, server: Server, caplog: pytest.LogCaptureFixture
):
    await session.encode(np.zeros(1920, np.float32))

    async def refuse(request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")

    server.before = refuse
    await session.close()
    assert "could not end mimi_encoder" in caplog.text
    assert "UNAVAILABLE: going down" in caplog.text


@pytest.mark.parametrize(
    ("code", "details", "raised"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Server is stopping", EngineUnavailable),
        (grpc.StatusCode.CANCELLED, "shutdown", EngineUnavailable),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            "inference request for sequence x to model 'temporal' must specify the START flag on the first request",
            EngineUnavailable,
        ),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape\nfor input 'pcm'", EngineError),
        (grpc.StatusCode.INTERNAL, "", EngineError),
    ],
)
async def test_what_triton_says_becomes_our_errors(
    session: TritonSession,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    code: grpc.StatusCode,
    details: str,
    raised: type[Exception],
):
    async def refuse(request: Any, context: Any) -> None:
        await context.abort(code, details)

    server.before = refuse
    with pytest.raises(raised) as told:
        await session.encode(np.zeros(1920, np.float32))
    assert "mimi_encoder" in str(told.value)
    assert code.name in str(told.value)
    if details:
        assert details.splitlines()[0] in caplog.text
        assert details not in str(told.value)


async def test_a_call_that_takes_too_long_is_given_up(session: TritonSession, server: Server):
    async def never(request: Any, context: Any) -> None:
        await asyncio.sleep(30)

    server.before = never
    session._engine.step_deadline = 0.1
    with pytest.raises(EngineUnavailable, match="DEADLINE_EXCEEDED"):
        await session.encode(np.zeros(1920, np.float32))


@pytest.mark.parametrize("missing", ["server", "mimi_encoder", "temporal", "depformer", "mimi_decoder"])
async def test_ready_is_the_server_and_each_of_the_four_models(engine: TritonEngine, server: Server, missing: str):
    assert await engine.ready()
    server.not_ready.add(missing)
    assert not await engine.ready()


async def test_a_triton_that_goes_and_comes_back_is_found_again(manifest: Manifest, server: Server):
    listening, port = await listen(server, "127.0.0.1:0")
    engine = TritonEngine(f"127.0.0.1:{port}", manifest, step_deadline=1)
    assert await engine.ready()
    await listening.stop(None)
    assert not await engine.ready()
    with pytest.raises(EngineUnavailable):
        await engine.open().encode(np.zeros(1920, np.float32))
    listening, _ = await listen(server, f"127.0.0.1:{port}")
    async with asyncio.timeout(5):
        while not await engine.ready():  # noqa: ASYNC110 (nothing but asking tells)
            await asyncio.sleep(0.05)
    await engine.open().encode(np.zeros(1920, np.float32))
    await engine.close()
    await listening.stop(None)
