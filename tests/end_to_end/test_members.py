"""Requests with rows of several conversations, to a real Triton: the result of each member, and invalid requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.end_to_end.conftest import Service

MODEL = "mimi_decoder"
Members = Sequence[tuple[int, int]]


class DecoderSequence:
    """A sequence in the decoder, started with a frame or without one."""

    def __init__(self, client: triton.InferenceServerClient, key: int, first: NDArray[np.int64] | None = None) -> None:
        self._client = client
        self._id = str(uuid4())
        self.key = key
        codes = np.full(8, 1 << 40) if first is None else first
        self.started = self._infer(codes[None], [(-1 if first is None else 0, key)], sequence_start=True)
        self.row = int(self.started.as_numpy("row")[0, 0])

    @property
    def member(self) -> tuple[int, int]:
        return self.row, self.key

    def ask(self, codes: NDArray[np.int64], members: Members | None = None) -> NDArray[np.float32]:
        """codes [N, 8] -> pcm [N, 1920], on this sequence."""
        pcm: NDArray[np.float32] = self._infer(codes, members or [self.member]).as_numpy("pcm")[0]
        return pcm

    def end(self) -> None:
        self._infer(np.zeros((1, 8)), [(0, 0)], sequence_end=True)

    def _infer(self, codes: NDArray[np.int64], members: Members, **flags: bool) -> triton.InferResult:
        inputs = []
        for name, array in {"codes": np.asarray(codes, np.int64)[None], "members": np.array([members])}.items():
            tensor = triton.InferInput(name, array.shape, "INT64")
            tensor.set_data_from_numpy(array.astype(np.int64))
            inputs.append(tensor)
        return self._client.infer(MODEL, inputs, sequence_id=self._id, **flags)


@pytest.fixture
def client(tiny_service: Service) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(tiny_service.triton.grpc_url) as client:
        yield client


@pytest.fixture
def sequences(client: triton.InferenceServerClient) -> Iterator[list[DecoderSequence]]:
    sequences = [DecoderSequence(client, key) for key in (11, 12, 13)]
    yield sequences
    for sequence in sequences:
        sequence.end()


@pytest.fixture
def codes(tiny_service: Service) -> NDArray[np.int64]:
    """[3 sequences, 6 frames, 8]."""
    return np.random.default_rng(0).integers(0, 1 << 8, (3, 6, 8))


@pytest.fixture
def alone(client: triton.InferenceServerClient, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Results of requests with one row: [3, 6, 1920]."""
    received = []
    for frames in codes:
        sequence = DecoderSequence(client, 1)
        received.append([sequence.ask(frame[None])[0] for frame in frames])
        sequence.end()
    return np.array(received)


def test_results_of_members_equal_those_of_single_rows(sequences, codes, alone):
    """The carrying sequence, the order and the set of members do not matter."""
    received: list[list[NDArray[np.float32]]] = [[], [], []]
    for order in ([0, 1, 2], [2, 0], [1], [1, 0], [2, 1], [2, 0, 1], [0, 2], [1, 2], [0, 1]):
        members = [index for index in order if len(received[index]) < 6]
        asked = np.stack([codes[index, len(received[index])] for index in members])
        answers = sequences[members[-1]].ask(asked, [sequences[index].member for index in members])
        for index, answer in zip(members, answers, strict=True):
            received[index].append(answer)
    for index, answers in enumerate(received):
        assert len(answers) >= 5
        np.testing.assert_array_equal(np.array(answers), alone[index, : len(answers)])


def test_the_start_may_carry_a_frame(client, codes, alone):
    sequence, silent = DecoderSequence(client, 31, codes[0, 0]), DecoderSequence(client, 32)
    np.testing.assert_array_equal(sequence.started.as_numpy("pcm")[0], alone[0, :1])
    assert silent.started.as_numpy("pcm") is None
    np.testing.assert_array_equal(sequence.ask(codes[0, 1:2]), alone[0, 1:2])
    np.testing.assert_array_equal(silent.ask(codes[2, :1]), alone[2, :1])
    for each in (sequence, silent):
        each.end()


def refused(words: str):
    return pytest.raises(InferenceServerException, match=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: [*members[:2], (members[2][0], 99)], r"members\[2\]: row \d is not, or no longer, that conv"),
        (lambda members: [*members[:2], (7, 13)], r"members\[2\]: row 7 is not"),
        (lambda members: [*members[:2], (-1, 13)], r"members\[2\]: row -1 is not"),
        (lambda members: [*members[:2], members[0]], "a row is named twice"),
        (lambda members: members[:2], r"codes: expected shape \[1, 2, ...\], got \[1, 3, 8\]"),
    ],
)
def test_invalid_members_are_rejected(sequences, codes, alone, change, words):
    """An invalid request changes no state."""
    members = [sequence.member for sequence in sequences]
    with refused(words) as error:
        sequences[0].ask(codes[:, 0], change(members))
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    np.testing.assert_array_equal(sequences[0].ask(codes[:, 0], members), alone[:, 0])


def test_an_invalid_row_rejects_the_request(sequences, codes, alone):
    members = [sequence.member for sequence in sequences]
    bad = codes[:, 0].copy()
    bad[1, 3] = 1 << 40
    with refused("codes: values must be in 0"):
        sequences[0].ask(bad, members)
    np.testing.assert_array_equal(sequences[0].ask(codes[:, 0], members), alone[:, 0])


def test_an_ended_member_is_rejected_even_if_its_row_is_reused(client, sequences, codes, alone):
    ended = DecoderSequence(client, 21)
    ended.end()
    with refused("is not, or no longer"):
        sequences[0].ask(codes[:2, 0], [sequences[0].member, ended.member])
    successor = DecoderSequence(client, 22)
    try:
        assert successor.row == ended.row
        with refused("is not, or no longer"):
            sequences[0].ask(codes[:2, 0], [sequences[0].member, ended.member])
        together = sequences[0].ask(codes[:2, 0], [sequences[0].member, successor.member])
        np.testing.assert_array_equal(together, alone[:2, 0])
    finally:
        successor.end()


def test_a_sequence_starts_with_one_member(client):
    sequence = DecoderSequence.__new__(DecoderSequence)
    sequence._client, sequence._id = client, str(uuid4())
    with refused("expected one at the start of a sequence, got 2"):
        sequence._infer(np.zeros((2, 8)), [(0, 1), (1, 2)], sequence_start=True)
    sequence.end()
