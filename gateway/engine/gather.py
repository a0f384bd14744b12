"""Calls that are made in the same turn of the event loop go to Triton as one request.

What Triton and its Python backend spend on a request, 0.2 ms of CPU and more, is then spent once for all conversations
that share a frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from gateway.conversation.engine import Draw, Thought, Tokens
from gateway.engine.http import Tensors, TritonGone, TritonHttp, TritonRefused
from gateway.engine.request import Tensor, head
from gateway.engine.sequence import Place, shared

DEPFORMER = "depformer"

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Gather(Generic[Asked, Answer]):
    """`carry_out` is given what was asked in one turn of the loop, `limit` at most at a time, and answers in order.

    An exception of its own fails all of them, one in its answer the one it stands for.
    """

    def __init__(
        self, carry_out: Callable[[list[Asked]], Coroutine[None, None, Sequence[Answer | Exception]]], limit: int
    ) -> None:
        self._carry_out = carry_out
        self._limit = limit
        self._asked: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    def ask(self, asked: Asked) -> asyncio.Future[Answer]:
        """The answer; the call is made whether or not somebody waits for it."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._go)
        self._asked.append((asked, answer))
        return answer

    def _go(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), self._limit):
            task = asyncio.create_task(self._answer(asked[first : first + self._limit]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _answer(self, asked: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._carry_out([question for question, _ in asked])
        except Exception as error:
            answers = [error] * len(asked)
        for (_, future), answer in zip(asked, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
                # Whoever asked may have gone.
                future.exception()
            else:
                future.set_result(answer)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of one conversation for a stateful model: raw inputs, in the order of the place's."""

    place: Place
    contents: Sequence[bytes]


class FrameCalls(Gather[Frame, Tensors]):
    """Frames of conversations whose rows in the model are known. Answers: raw outputs by name."""

    def __init__(self, http: TritonHttp, limit: int, deadline: float) -> None:
        super().__init__(self._frames, limit)
        self._http = http
        self._deadline = deadline

    async def _frames(self, frames: list[Frame]) -> Sequence[Tensors | Exception]:
        if len(frames) == 1:
            return await self._each(frames)
        try:
            outputs = await self._http.infer(
                shared([frame.place for frame in frames], [frame.contents for frame in frames]), self._deadline
            )
        except TritonRefused as error:
            if error.status != _NOTHING_DONE:
                raise
            # Something is wrong with one of them; which one, each finds out alone.
            return await self._each(frames)
        parts = range(len(frames))
        return [{name: _part(output, part, len(parts)) for name, output in outputs.items()} for part in parts]

    async def _each(self, frames: list[Frame]) -> Sequence[Tensors | Exception]:
        calls = (self._alone(frame) for frame in frames)
        return await asyncio.gather(*calls)

    async def _alone(self, frame: Frame) -> Tensors | Exception:
        try:
            return await self._http.infer(frame.place.frame(frame.contents), self._deadline)
        except (TritonRefused, TritonGone) as error:
            return error


_NOTHING_DONE = 400
"""The status of a request that a model, or Triton before it, did not begin to carry out."""


def _part(output: memoryview, index: int, parts: int) -> memoryview:
    size = len(output) // parts
    return output[index * size : (index + 1) * size]


class DepformerCalls(Gather[tuple[Thought, Draw], Tokens]):
    """Of any conversations: the depformer keeps no state, so Triton's own batch dimension counts them.

    `limit`: the most rows of one request, the model's `max_batch_size`. `deadline`: seconds.
    """

    def __init__(self, http: TritonHttp, dim: int, limit: int, deadline: float) -> None:
        super().__init__(self._draw, limit)
        self._http = http
        self._deadline = deadline
        self._inputs = (
            Tensor("hidden", "FP32", (dim,)),
            Tensor("text_token", "INT64", (1,)),
            Tensor("sampler", "INT64", (3,)),
            Tensor("temperature", "FP32", (1,)),
        )

    async def _draw(self, asked: list[tuple[Thought, Draw]]) -> list[Tokens]:
        rows = len(asked)
        hidden = np.concatenate([thought.hidden for thought, _ in asked]).astype(np.float32, copy=False)
        text_tokens = np.array([thought.text_token for thought, _ in asked], np.int64)
        samplers = np.array([(draw.seed, draw.position, draw.top_k) for _, draw in asked], np.int64)
        temperatures = np.array([draw.temperature for _, draw in asked], np.float32)
        tensors = [array.tobytes() for array in (hidden, text_tokens, samplers, temperatures)]
        request = head(DEPFORMER, [tensor.of(rows) for tensor in self._inputs])
        answer = await self._http.infer([request, *tensors], self._deadline)
        return list(np.frombuffer(answer["codes"], np.int64).reshape(rows, -1))
