"""A Triton inference request that is laid out once, so that a frame only adds its tensors' bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

_ITEM_BYTES = {"FP32": 4, "INT64": 8}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: its name, Triton data type and shape without the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * _ITEM_BYTES[self.datatype]


class Request:
    """Requests of `rows` rows to one model; with a `sequence_id` (then of one row), the first one carries START."""

    def __init__(self, model: str, inputs: Sequence[Tensor], sequence_id: str | None = None, rows: int = 1) -> None:
        self.model = model
        self._rows = rows
        self.begun = False
        self._inputs = tuple(inputs)
        self._sequence_id = sequence_id
        self._usual: bytes | None = None

    def fill(self, contents: Sequence[bytes]) -> list[bytes]:
        """Head, JSON and these raw inputs, of the declared shapes, one per tensor."""
        if not self.begun:
            return self.fill_with(self._inputs, contents)
        if self._usual is None:
            self._usual = self._head(self._inputs)
        return [self._usual, *contents]

    def fill_with(self, inputs: Sequence[Tensor], contents: Sequence[bytes]) -> list[bytes]:
        """The same with other inputs than declared."""
        head = self._head(inputs, start=self._sequence_id is not None and not self.begun)
        self.begun = True
        return [head, *contents]

    def end(self) -> list[bytes]:
        """What ends the sequence: zeros, which the model ignores."""
        return [self._head(self._inputs, end=True), *(bytes(tensor.size) for tensor in self._inputs)]

    def _head(self, inputs: Sequence[Tensor], *, start: bool = False, end: bool = False) -> bytes:
        parameters: dict[str, str | bool] = {"binary_data_output": True}
        if self._sequence_id is not None:
            parameters |= {"sequence_id": self._sequence_id, "sequence_start": start, "sequence_end": end}
        described = [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": [self._rows, *tensor.shape],
                "parameters": {"binary_data_size": self._rows * tensor.size},
            }
            for tensor in inputs
        ]
        header = json.dumps({"parameters": parameters, "inputs": described}).encode()
        length = len(header) + self._rows * sum(tensor.size for tensor in inputs)
        head = (
            f"POST /v2/models/{self.model}/infer HTTP/1.1\r\nHost: triton\r\n"
            f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {length}\r\n\r\n"
        )
        return head.encode() + header
