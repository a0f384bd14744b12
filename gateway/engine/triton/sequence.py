"""A conversation's sequence in one stateful model: its row there, and the requests that are its own."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

import numpy as np

from gateway.engine.triton.request import Tensor, head

TOUCH_SECONDS = 600.0
"""After so long without a request of its own a sequence makes the next one itself, whoever could speak for it: Triton
takes the row of a sequence that has been idle for an hour."""

_MEMBER = Tensor("members", "INT64", (2,))


class TritonSequence:
    """`inputs`: the tensors of a frame, without the dimension that counts members.

    row: None until the model has said which it is, in its answer to the request that begins the sequence.
    """

    def __init__(
        self, model: str, inputs: Sequence[Tensor], sequence_id: str, clock: Callable[[], float] = monotonic
    ) -> None:
        self.model = model
        self.inputs = tuple(inputs)
        self.row: int | None = None
        self.begun = False
        self._sequence_id = sequence_id
        self._clock = clock
        self._key = secrets.randbits(63)
        self._touched_at = 0.0
        self._usual: bytes | None = None

    @property
    def shares(self) -> bool:
        """Whether its next frame may be part of another's request."""
        return self.row is not None and self._clock() - self._touched_at < TOUCH_SECONDS

    def frame(self, contents: Sequence[bytes]) -> list[bytes]:
        """The request of a frame nobody shares."""
        if not self.begun:
            return self.request(self.inputs, contents)
        if self._usual is None:
            self._usual = self._head(self.inputs)
        return self._own(self._usual, contents)

    def request(self, inputs: Sequence[Tensor], contents: Sequence[bytes]) -> list[bytes]:
        """The same with other inputs; the first one begins the sequence."""
        start, self.begun = not self.begun, True
        return self._own(self._head(inputs, start=start), contents)

    def begin(self) -> list[bytes]:
        """What begins the sequence before there is anything to be done: its first frame can then be shared."""
        self.begun = True
        zeros = [bytes(tensor.size) for tensor in self.inputs]
        return self._own(self._head(self.inputs, start=True), zeros, row=-1)

    def end(self) -> list[bytes]:
        """What ends the sequence: zeros, which the model does not look at."""
        return self._own(self._head(self.inputs, end=True), [bytes(tensor.size) for tensor in self.inputs])

    def answered(self, outputs: Mapping[str, memoryview]) -> None:
        """Take note of where the model put the sequence, which it says once."""
        if "row" in outputs:
            self.row = int(np.frombuffer(outputs["row"], np.int64)[0])

    def _own(self, request: bytes, contents: Sequence[bytes], row: int | None = None) -> list[bytes]:
        self._touched_at = self._clock()
        return [request, *contents, self._member(row)]

    def _head(self, inputs: Sequence[Tensor], *, start: bool = False, end: bool = False) -> bytes:
        tensors = [tensor.of(1, 1) for tensor in (*inputs, _MEMBER)]
        return head(self.model, tensors, self._sequence_id, start=start, end=end)

    def _member(self, row: int | None = None) -> bytes:
        return np.array([(self.row or 0) if row is None else row, self._key], np.int64).tobytes()


def shared(sequences: Sequence[TritonSequence], contents: Sequence[Sequence[bytes]]) -> list[bytes]:
    """One request for a frame of several, all of whom have rows in the same model.

    It goes on the sequence of the lowest row: to each row below that one Triton adds a copy of the request.
    """
    carrier = min(sequences, key=lambda sequence: sequence.row or 0)
    tensors = [tensor.of(1, len(sequences)) for tensor in (*carrier.inputs, _MEMBER)]
    request = head(carrier.model, tensors, carrier._sequence_id)
    carrier._touched_at = carrier._clock()
    members = b"".join(sequence._member() for sequence in sequences)
    return [request, *(b"".join(parts) for parts in zip(*contents, strict=True)), members]
