"""The generated configs, read back with Triton's own message."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repository.checkpoint.geometry import Geometry
from model_repository.triton_config import served_models
from model_repository.variants import Device


def parsed(slots: int = 8, device: Device = Device.CPU):
    configs = [model.pbtxt(slots, device) for model in served_models(Geometry.from_config({}), device)]
    return {
        config.name: config for config in (text_format.Parse(text, model_config_pb2.ModelConfig()) for text in configs)
    }


def test_stateful_models_keep_a_sequence_in_its_row():
    configs = parsed(slots=5)
    assert all(config.max_batch_size == 5 for config in configs.values())
    for name in ("mimi_encoder", "temporal", "mimi_decoder"):
        batching = configs[name].sequence_batching
        assert batching.WhichOneof("strategy_choice") == "direct"
        assert batching.max_sequence_idle_microseconds >= 60_000_000, "Triton's default of 1 s would cut pauses off"
        assert [control.name for control in batching.control_input] == ["READY"]
    assert configs["depformer"].WhichOneof("scheduling_choice") == "dynamic_batching"


@pytest.mark.parametrize(
    ("device", "kind", "gpus", "provider"),
    [
        (Device.CPU, "KIND_CPU", [], "cpu"),
        (Device.CUDA, "KIND_GPU", [0], "cuda"),
    ],
)
def test_every_model_has_one_instance_on_its_device(device, kind, gpus, provider):
    """A second one would have rows of its own."""
    for config in parsed(device=device).values():
        (group,) = config.instance_group
        assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
        assert (group.count, list(group.gpus)) == (1, gpus)
        assert config.parameters["provider"].string_value == provider


def test_shapes_are_the_published_models():
    temporal = parsed()["temporal"]
    shapes = {tensor.name: list(tensor.dims) for tensor in (*temporal.input, *temporal.output)}
    assert shapes == {
        "columns": [-1, -1, 17],
        "embeddings": [-1, -1, 4096],
        "prefix": [-1, 6],
        "sampler": [-1, 3],
        "temperature": [-1, 1],
        "members": [-1, 2],
        "hidden": [-1, 4096],
        "text_token": [-1, 1],
        "progress": [-1, 2],
        "row": [1],
    }
    assert [tensor.name for tensor in temporal.input if tensor.optional] == ["embeddings", "prefix"]
    assert temporal.parameters["window"].string_value == "2999"


def test_nothing_waits_for_neighbours():
    """Who shares a frame comes in one request; to wait for more would only make it later."""
    configs = parsed()
    for name in ("mimi_encoder", "temporal", "mimi_decoder"):
        direct = configs[name].sequence_batching.direct
        assert (direct.max_queue_delay_microseconds, direct.minimum_slot_utilization) == (0, 0)
    assert configs["depformer"].dynamic_batching.max_queue_delay_microseconds == 0


def test_requests_to_stateful_models_have_members_and_tell_the_row():
    configs = parsed()
    for name in ("mimi_encoder", "temporal", "mimi_decoder"):
        inputs = {tensor.name: tensor for tensor in configs[name].input}
        assert list(inputs["members"].dims) == [-1, 2]
        assert all(tensor.dims[0] == -1 and tensor.allow_ragged_batch for tensor in inputs.values())
        outputs = {tensor.name: list(tensor.dims) for tensor in configs[name].output}
        assert outputs.pop("row") == [1]
        assert all(dims[0] == -1 for dims in outputs.values())
    assert "members" not in {tensor.name for tensor in configs["depformer"].input}
