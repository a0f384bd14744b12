"""Calls that are made in the same turn of the event loop go to Triton as one request.

What Triton and its Python backend spend on a request, 0.2 ms of CPU and more, is then spent once for all conversations
that share a frame.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from gateway.engine.backend import Draw, TemporalOutput, Tokens
from gateway.engine.triton.http import Tensors, TritonGone, TritonHttp, TritonRefused
from gateway.engine.triton.request import Tensor, head
from gateway.engine.triton.sequence import TritonSequence, shared

DEPFORMER = "depformer"

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Waiting = list[tuple[Asked, asyncio.Future[Answer]]]


class Gather(ABC, Generic[Asked, Answer]):
    """What is asked in one turn of the loop, `limit` at most at a time, is one request. `deadline`: seconds."""

    def __init__(self, http: TritonHttp, limit: int, deadline: float) -> None:
        self._http = http
        self._limit = limit
        self._deadline = deadline
        self._waiting: Waiting[Asked, Answer] = []

    def ask(self, asked: Asked) -> asyncio.Future[Answer]:
        """The answer; the call is made whether or not somebody waits for it. Fails with TritonRefused or TritonGone."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._go)
        self._waiting.append((asked, answer))
        return answer

    @abstractmethod
    def request(self, asked: list[Asked]) -> list[bytes]:
        """One request for all of them."""

    @abstractmethod
    def answers(self, outputs: Tensors, count: int) -> Sequence[Answer]:
        """What the request's raw outputs mean for each."""

    def failed(self, waiting: Waiting[Asked, Answer], error: Exception) -> None:
        """The request for all of them failed."""
        for _, answer in waiting:
            # Whoever asked may have gone.
            if not answer.done():
                answer.set_exception(error)
                answer.exception()

    def send(self, waiting: Waiting[Asked, Answer]) -> None:
        """Ask for all of them at once."""
        call = self._http.infer(self.request([asked for asked, _ in waiting]), self._deadline)
        # No task: this runs for every stage of every frame.
        call.add_done_callback(lambda call: self._answered(waiting, call))

    def _go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for first in range(0, len(waiting), self._limit):
            self.send(waiting[first : first + self._limit])

    def _answered(self, waiting: Waiting[Asked, Answer], call: asyncio.Future[Tensors]) -> None:
        try:
            answers = self.answers(call.result(), len(waiting))
        except (TritonRefused, TritonGone) as error:
            self.failed(waiting, error)
        except (ValueError, KeyError):
            self.failed(waiting, TritonGone("an answer that is not the model's"))
        else:
            for (_, future), answer in zip(waiting, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of one conversation for a stateful model: raw inputs, in the order of the sequence's."""

    sequence: TritonSequence
    contents: Sequence[bytes]


class FrameCalls(Gather[Frame, Tensors]):
    """Frames of conversations whose rows in the model are known. Answers: raw outputs by name."""

    def request(self, asked: list[Frame]) -> list[bytes]:
        if len(asked) == 1:
            return asked[0].sequence.frame(asked[0].contents)
        return shared([frame.sequence for frame in asked], [frame.contents for frame in asked])

    def answers(self, outputs: Tensors, count: int) -> Sequence[Tensors]:
        if count == 1:
            return [outputs]
        return [{name: _part(output, part, count) for name, output in outputs.items()} for part in range(count)]

    def failed(self, waiting: Waiting[Frame, Tensors], error: Exception) -> None:
        """Something may be wrong with one of them alone; which one, each finds out by itself."""
        if len(waiting) > 1 and isinstance(error, TritonRefused) and error.status == _NOTHING_DONE:
            for one in waiting:
                self.send([one])
        else:
            super().failed(waiting, error)


_NOTHING_DONE = 400
"""The status of a request that a model, or Triton before it, did not begin to carry out."""


def _part(output: memoryview, part: int, parts: int) -> memoryview:
    size = len(output) // parts
    return output[part * size : (part + 1) * size]


class DepformerCalls(Gather[tuple[TemporalOutput, Draw], Tokens]):
    """Of any conversations: the depformer keeps no state, so Triton's own batch dimension counts them."""

    def __init__(self, http: TritonHttp, dim: int, limit: int, deadline: float) -> None:
        super().__init__(http, limit, deadline)
        self._inputs = (
            Tensor("hidden", "FP32", (dim,)),
            Tensor("text_token", "INT64", (1,)),
            Tensor("sampler", "INT64", (3,)),
            Tensor("temperature", "FP32", (1,)),
        )

    def request(self, asked: list[tuple[TemporalOutput, Draw]]) -> list[bytes]:
        hidden = np.concatenate([thought.hidden for thought, _ in asked]).astype(np.float32, copy=False)
        text_tokens = np.array([thought.text_token for thought, _ in asked], np.int64)
        samplers = np.array([(draw.seed, draw.position, draw.top_k) for _, draw in asked], np.int64)
        temperatures = np.array([draw.temperature for _, draw in asked], np.float32)
        tensors = [array.tobytes() for array in (hidden, text_tokens, samplers, temperatures)]
        return [head(DEPFORMER, [tensor.of(len(asked)) for tensor in self._inputs]), *tensors]

    def answers(self, outputs: Tensors, count: int) -> Sequence[Tokens]:
        return list(np.frombuffer(outputs["codes"], np.int64).reshape(count, -1))
