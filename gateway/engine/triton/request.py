"""Triton inference requests, laid out: what a frame adds is its tensors' bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

_ITEM_BYTES = {"FP32": 4, "INT64": 8}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: its name, Triton data type and shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * _ITEM_BYTES[self.datatype]

    def of(self, *outer: int) -> Tensor:
        """The same with more dimensions before its own."""
        return Tensor(self.name, self.datatype, (*outer, *self.shape))


def head(
    model: str, inputs: Sequence[Tensor], sequence_id: str | None = None, *, start: bool = False, end: bool = False
) -> bytes:
    """HTTP head and JSON of a request; the tensors' bytes, in the order of `inputs`, follow."""
    parameters: dict[str, str | bool] = {"binary_data_output": True}
    if sequence_id is not None:
        parameters |= {"sequence_id": sequence_id, "sequence_start": start, "sequence_end": end}
    described = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": tensor.size},
        }
        for tensor in inputs
    ]
    header = json.dumps({"parameters": parameters, "inputs": described}).encode()
    length = len(header) + sum(tensor.size for tensor in inputs)
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: triton\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {length}\r\n\r\n"
    )
    return lines.encode() + header
