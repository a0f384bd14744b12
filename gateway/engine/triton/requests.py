"""Triton inference requests: HTTP head and JSON, which are the same for every batch of one size, before the tensors.

Source: KServe "open inference protocol" v2 with Triton's binary tensor data extension.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

_ITEM_BYTES = {"FP32": 4, "INT64": 8}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input tensor: its name, Triton data type and shape."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def batched(self, *outer: int) -> TensorSpec:
        """The same tensor with dimensions in front of its own."""
        return TensorSpec(self.name, self.datatype, (*outer, *self.shape))

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return prod(self.shape) * _ITEM_BYTES[self.datatype]


def request_head(
    model: str, inputs: Sequence[TensorSpec], sequence_id: str | None = None, *, start: bool = False, end: bool = False
) -> bytes:
    """HTTP head and JSON of a request; the bytes of `inputs`, in their order, follow it."""
    parameters: dict[str, str | bool] = {"binary_data_output": True}
    if sequence_id is not None:
        parameters |= {"sequence_id": sequence_id, "sequence_start": start, "sequence_end": end}
    described = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for tensor in inputs
    ]
    header = json.dumps({"parameters": parameters, "inputs": described}).encode()
    length = len(header) + sum(tensor.nbytes for tensor in inputs)
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: triton\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {length}\r\n\r\n"
    )
    return lines.encode() + header
