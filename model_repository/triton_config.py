"""The `config.pbtxt` of each served model, from the checkpoint's geometry.

Messages are Triton's own `inference.ModelConfig`, so that a misspelt field fails here and not in the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, Geometry
from model_repository.temporal.graph import max_text_top_k
from model_repository.variants import Device

ENTRY_POINT = "from model_repository.serving.triton_model import TritonPythonModel as TritonPythonModel\n"
"""`model.py` of every model."""

MODELS = ("mimi_encoder", "temporal", "depformer", "mimi_decoder")

SEQUENCE_IDLE_MICROSECONDS = 3600 * 1_000_000
"""After this long without a request Triton frees a row. The gateway ends conversations long before; this frees rows
whose gateway died. Triton's default of one second would take the row of a caller who is merely late. A sequence that
others' requests speak for is idle to Triton: the gateway lets each ask for itself in a small part of this time."""


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` without the batch dimension, -1 for a dynamic size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class ServedModel:
    """Everything a `config.pbtxt` says that differs between the models.

    The tensors are those of one conversation; how requests to a stateful model speak for several is said in
    `serving/members.py`.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    stateful: bool
    parameters: dict[str, int]

    def pbtxt(self, slots: int, device: Device = Device.CPU) -> str:
        """The file's text, for `slots` rows."""
        config = pb.ModelConfig(name=self.name, backend="python", max_batch_size=slots)
        # By Triton's rule a sequence's request has batch size 1: its members are counted by the next dimension.
        members = (-1,) if self.stateful else ()
        for tensor in self.inputs:
            shape = (*members, *tensor.shape)
            config.input.add(
                name=tensor.name,
                data_type=pb.DataType.Value(tensor.dtype),
                dims=shape,
                allow_ragged_batch=-1 in shape,
                optional=tensor.optional,
            )
        for tensor in self.outputs:
            shape = (*members, *tensor.shape)
            config.output.add(name=tensor.name, data_type=pb.DataType.Value(tensor.dtype), dims=shape)
        if self.stateful:
            config.input.add(name="members", data_type=pb.DataType.TYPE_INT64, dims=(-1, 2), allow_ragged_batch=True)
            config.output.add(name="row", data_type=pb.DataType.TYPE_INT64, dims=(1,))
            _sequence_batching(config.sequence_batching)
        else:
            config.dynamic_batching.SetInParent()
        # One instance: it holds the state of every row.
        if device is Device.CUDA:
            # The first of the GPUs that CUDA_VISIBLE_DEVICES leaves visible.
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=1, gpus=[0])
        else:
            config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
        for name, value in {**self.parameters, "provider": device.value}.items():
            config.parameters[name].string_value = str(value)
        return str(text_format.MessageToString(config))


def served_models(geometry: Geometry, device: Device = Device.CPU) -> tuple[ServedModel, ...]:
    """The four models on a device, in the order a frame passes through them."""
    lm = geometry.lm
    frame = Tensor("pcm", "TYPE_FP32", (geometry.mimi.frame_size,))
    codes = Tensor("codes", "TYPE_INT64", (AGENT_CODEBOOKS,))
    hidden = Tensor("hidden", "TYPE_FP32", (lm.temporal.dim,))
    text_token = Tensor("text_token", "TYPE_INT64", (1,))
    sampling = (Tensor("sampler", "TYPE_INT64", (3,)), Tensor("temperature", "TYPE_FP32", (1,)))
    columns = Tensor("columns", "TYPE_INT64", (-1, lm.num_streams))
    embeddings = Tensor("embeddings", "TYPE_FP32", (-1, lm.temporal.dim), optional=True)
    prefix = Tensor("prefix", "TYPE_INT64", (6,), optional=True)
    progress = Tensor("progress", "TYPE_INT64", (2,))
    vocabularies = {"text_card": lm.text_card, "card": lm.card}
    return (
        ServedModel("mimi_encoder", (frame,), (codes,), True, {}),
        ServedModel(
            "temporal",
            (columns, embeddings, prefix, *sampling),
            (hidden, text_token, progress),
            True,
            {**vocabularies, "window": lm.temporal.window, "max_text_top_k": max_text_top_k(lm, device)},
        ),
        ServedModel("depformer", (hidden, text_token, *sampling), (codes,), False, vocabularies),
        ServedModel("mimi_decoder", (codes,), (frame,), True, {"card": lm.card}),
    )


def _sequence_batching(batching: Any) -> None:
    """Direct: a sequence keeps its row for life, and the row is where its state lies.

    Nothing waits for neighbours: conversations that share a frame come in one request.
    """
    batching.direct.SetInParent()
    batching.max_sequence_idle_microseconds = SEQUENCE_IDLE_MICROSECONDS
    # START and END reach the model as flags of the request; a row without a request is told by READY alone.
    ready = pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_READY
    batching.control_input.add(name="READY").control.add(kind=ready, int32_false_true=[0, 1])
