"""A Triton inference request that is built once and refilled for every frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

_ITEM_BYTES = {"FP32": 4, "INT64": 8}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: its name, Triton data type and shape without the batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Request:
    """One batch-1 ModelInferRequest; with a `sequence_id`, the first one filled carries START."""

    def __init__(self, model: str, inputs: Sequence[Tensor], sequence_id: str | None = None) -> None:
        self.model = model
        self.begun = False
        self._inputs = list(inputs)
        self._message = service_pb2.ModelInferRequest(model_name=model)
        for tensor in self._inputs:
            self._message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=(1, *tensor.shape))
            self._message.raw_input_contents.append(b"")
        self._is_sequence = sequence_id is not None
        if sequence_id is not None:
            self._message.parameters["sequence_id"].string_param = sequence_id
            self._message.parameters["sequence_end"].bool_param = False

    def reshape(self, index: int, shape: Sequence[int]) -> None:
        """Give input `index` another shape (without the batch dimension)."""
        self._message.inputs[index].shape[:] = (1, *shape)

    def fill(self, contents: Sequence[bytes]) -> service_pb2.ModelInferRequest:
        """The message with these raw inputs, one per tensor. It is reused: send it before the next call."""
        if self._is_sequence:
            self._message.parameters["sequence_start"].bool_param = not self.begun
        self.begun = True
        for index, raw in enumerate(contents):
            self._message.raw_input_contents[index] = raw
        return self._message

    def end(self) -> service_pb2.ModelInferRequest:
        """The message that ends the sequence: zeros of the declared shapes, which the model ignores."""
        zeros = []
        for index, tensor in enumerate(self._inputs):
            self.reshape(index, tensor.shape)
            size = _ITEM_BYTES[tensor.datatype]
            for extent in tensor.shape:
                size *= extent
            zeros.append(bytes(size))
        message = self.fill(zeros)
        message.parameters["sequence_end"].bool_param = True
        return message
