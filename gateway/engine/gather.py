"""Depformer calls that are made in the same turn of the event loop go to Triton as one request.

The depformer keeps no state, so a request may hold many rows; what Triton and its Python backend spend on a request
is then spent once for all conversations that share a frame.
"""

from __future__ import annotations

import asyncio

import numpy as np

from gateway.conversation.engine import Draw, Thought, Tokens
from gateway.engine.http import TritonHttp
from gateway.engine.request import Request, Tensor

MODEL = "depformer"

_Asked = tuple[Thought, Draw, asyncio.Future[Tokens]]


class DepformerCalls:
    """`limit`: the most rows of one request, the model's `max_batch_size`. `deadline`: seconds."""

    def __init__(self, http: TritonHttp, dim: int, limit: int, deadline: float) -> None:
        self._http = http
        self._limit = limit
        self._deadline = deadline
        self._inputs = (
            Tensor("hidden", "FP32", (dim,)),
            Tensor("text_token", "INT64", (1,)),
            Tensor("sampler", "INT64", (3,)),
            Tensor("temperature", "FP32", (1,)),
        )
        self._requests: dict[int, Request] = {}
        self._asked: list[_Asked] = []
        self._under_way: set[asyncio.Task[None]] = set()

    def ask(self, thought: Thought, draw: Draw) -> asyncio.Future[Tokens]:
        """Codes [8] int64; fails with TritonRefused or TritonGone."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Tokens] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._send)
        self._asked.append((thought, draw, answer))
        return answer

    def _send(self) -> None:
        asked, self._asked = self._asked, []
        for first in range(0, len(asked), self._limit):
            task = asyncio.create_task(self._call(asked[first : first + self._limit]))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _call(self, asked: list[_Asked]) -> None:
        rows = len(asked)
        request = self._requests.get(rows)
        if request is None:
            request = self._requests[rows] = Request(MODEL, self._inputs, rows=rows)
        hidden = np.concatenate([thought.hidden for thought, _, _ in asked]).astype(np.float32, copy=False)
        text_tokens = np.array([thought.text_token for thought, _, _ in asked], np.int64)
        samplers = np.array([(draw.seed, draw.position, draw.top_k) for _, draw, _ in asked], np.int64)
        temperatures = np.array([draw.temperature for _, draw, _ in asked], np.float32)
        contents = [array.tobytes() for array in (hidden, text_tokens, samplers, temperatures)]
        try:
            answer = await self._http.infer(request.fill(contents), self._deadline)
            codes = np.frombuffer(answer["codes"], np.int64).reshape(rows, -1)
        except Exception as error:
            for _, _, future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        for row, (_, _, future) in enumerate(asked):
            if not future.done():
                future.set_result(codes[row])
