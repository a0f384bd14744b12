"""The generated configs, read back with Triton's own message."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repository.checkpoint.geometry import Geometry
from model_repository.triton_config import queue_delay, served_models
from model_repository.variants import Device


def parsed(slots: int = 8, weight_bytes: int = 4 << 30, device: Device = Device.CPU):
    configs = [model.pbtxt(slots, weight_bytes, device) for model in served_models(Geometry.from_config({}))]
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
    ("device", "kind", "gpus", "place"),
    [
        (Device.CPU, "KIND_CPU", [], {"provider": "cpu"}),
        (Device.CUDA, "KIND_GPU", [0], {"provider": "cuda", "device_id": "0"}),
    ],
)
def test_every_model_has_one_instance_on_its_device(device, kind, gpus, place):
    """A second one would have rows of its own."""
    for config in parsed(device=device).values():
        (group,) = config.instance_group
        assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
        assert (group.count, list(group.gpus)) == (1, gpus)
        told = {name: value.string_value for name, value in config.parameters.items()}
        assert {name: told[name] for name in ("provider", "device_id") if name in told} == place


def test_a_gpu_waits_less_for_neighbours_than_a_cpu():
    big = 14 << 30
    assert queue_delay(big, 1, Device.CUDA) < queue_delay(big, 1)


def test_shapes_are_the_published_models():
    temporal = parsed()["temporal"]
    shapes = {tensor.name: list(tensor.dims) for tensor in (*temporal.input, *temporal.output)}
    assert shapes == {
        "columns": [-1, 17],
        "embeddings": [-1, 4096],
        "prefix": [6],
        "sampler": [3],
        "temperature": [1],
        "hidden": [4096],
        "text_token": [1],
        "progress": [2],
    }
    assert [tensor.name for tensor in temporal.input if tensor.optional] == ["embeddings", "prefix"]
    assert [tensor.name for tensor in temporal.input if tensor.allow_ragged_batch] == ["columns", "embeddings"]
    assert temporal.parameters["window"].string_value == "2999"


def test_sequences_wait_for_their_neighbours_and_whole_batches_for_nothing():
    configs = parsed(slots=8, weight_bytes=1 << 20)
    for name in ("mimi_encoder", "temporal", "mimi_decoder"):
        assert configs[name].sequence_batching.direct.max_queue_delay_microseconds == 800
    assert configs["depformer"].dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize(
    ("weight_bytes", "slots", "microseconds"),
    [
        (1 << 20, 1, 1),
        (1 << 20, 8, 800),
        (1 << 20, 64, 1500),
        (500_000_000, 2, 625),
        (4 << 30, 1, 1500),
        (4 << 30, 64, 1500),
    ],
)
def test_the_wait_is_as_long_as_neighbours_take_or_a_share_of_an_execution(weight_bytes, slots, microseconds):
    assert queue_delay(weight_bytes, slots) == microseconds
