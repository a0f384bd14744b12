"""START cleans a row in a real Triton: after a hostile conversation, and in the middle of a running sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from tests.end_to_end.conftest import Service
from tests.model_repository.serving.conftest import Models, one, sampler

Array = NDArray[Any]
FRAMES = 4
HOSTILE = [3e38, 1e30, 1e-40, 1e4]
NAMES = {"encoder": "mimi_encoder", "decoder": "mimi_decoder", "temporal": "temporal"}


class Sequence:
    """A sequence with a fixed id. Each conversation on it begins with START; END is sent by `end` only."""

    def __init__(self, client: triton.InferenceServerClient, model: str) -> None:
        self._client = client
        self._model = NAMES[model]
        self._conversations = 0
        self._member = [0, 0]

    def converse(self, requests: list[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Start a conversation and return the outputs of each request."""
        self._conversations += 1
        outputs = []
        for index, inputs in enumerate(requests):
            member = [0, self._conversations] if index == 0 else self._member
            result = self._infer(inputs, member, sequence_start=index == 0)
            if index == 0:
                self._member = [int(result.pop("row")[0]), self._conversations]
            outputs.append(result)
        return outputs

    def end(self, inputs: Mapping[str, Array]) -> None:
        self._infer(inputs, self._member, sequence_end=True)

    def _infer(self, inputs: Mapping[str, Array], member: list[int], **flags: bool) -> dict[str, Array]:
        tensors = []
        for name, array in {**inputs, "members": np.array(member)}.items():
            batch = array[None, None]
            tensor = triton.InferInput(name, batch.shape, np_to_triton_dtype(batch.dtype))
            tensor.set_data_from_numpy(batch)
            tensors.append(tensor)
        result = self._client.infer(self._model, tensors, sequence_id=f"start-{self._model}", **flags)
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name)[0, 0] if name != "row" else result.as_numpy(name)[0] for name in names}


@pytest.fixture
def client(tiny_service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(tiny_service.triton.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def fresh(tiny_models: Path) -> Models:
    """The models in this process, without any conversation so far."""
    return Models(tiny_models, slots=1)


def speech(models: Models, model: str) -> list[Mapping[str, Array]]:
    """The inputs of an ordinary conversation."""
    random = np.random.default_rng(5)
    if model == "encoder":
        return [{"pcm": frame} for frame in random.standard_normal((FRAMES, 1920)).astype(np.float32) * 0.2]
    if model == "decoder":
        return [{"codes": frame} for frame in random.integers(0, models.card, (FRAMES, 8))]
    columns = random.integers(0, models.text_card, (FRAMES, 1, 17))
    return [{"columns": column, **sampler(index)} for index, column in enumerate(columns)]


def hostile(models: Models, model: str) -> list[Mapping[str, Array]]:
    """The inputs of a conversation of huge and denormal values, as far as the model accepts numbers at all."""
    signs = np.sign(np.random.default_rng(6).standard_normal((len(HOSTILE), 1920)))
    if model == "encoder":
        return [{"pcm": (sign * size).astype(np.float32)} for sign, size in zip(signs, HOSTILE, strict=True)]
    if model == "decoder":
        return [{"codes": np.full(8, models.card - 1)}] * FRAMES
    columns = np.ones((1, 17), np.int64)
    embeddings = (signs[:, : models.dim] * np.array(HOSTILE)[:, None]).astype(np.float32)
    return [{"columns": columns, "embeddings": embeddings, **sampler(4)}, {"columns": columns, **sampler(5)}]


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("ended", [True, False], ids=["after END", "in a running sequence"])
def test_a_conversation_after_a_hostile_one_is_as_on_a_fresh_server(
    client: triton.InferenceServerClient, fresh: Models, model: str, ended: bool
) -> None:
    sequence = Sequence(client, model)
    requests = speech(fresh, model)
    sequence.converse(hostile(fresh, model))
    if ended:
        sequence.end(requests[0])
    answers = sequence.converse(requests)
    sequence.end(requests[0])
    for index, (inputs, answer) in enumerate(zip(requests, answers, strict=True)):
        expected = one(getattr(fresh, model), 0, inputs, start=index == 0)
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(answer[name], value)
