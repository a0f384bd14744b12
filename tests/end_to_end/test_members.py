"""Requests that speak for several conversations, put to a real Triton: each member's answer, and what is refused."""

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


class Caller:
    """A sequence in the decoder, begun with a frame or without one."""

    def __init__(self, client: triton.InferenceServerClient, key: int, first: NDArray[np.int64] | None = None) -> None:
        self._client = client
        self._id = str(uuid4())
        self.key = key
        codes = np.full(8, 1 << 40) if first is None else first
        self.begun = self._infer(codes[None], [(-1 if first is None else 0, key)], sequence_start=True)
        self.row = int(self.begun.as_numpy("row")[0, 0])

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
def callers(client: triton.InferenceServerClient) -> Iterator[list[Caller]]:
    callers = [Caller(client, key) for key in (11, 12, 13)]
    yield callers
    for caller in callers:
        caller.end()


@pytest.fixture
def codes(tiny_service: Service) -> NDArray[np.int64]:
    """[3 callers, 6 frames, 8]."""
    return np.random.default_rng(0).integers(0, 1 << 8, (3, 6, 8))


@pytest.fixture
def alone(client: triton.InferenceServerClient, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each caller hears when nobody speaks for anybody: [3, 6, 1920]."""
    heard = []
    for frames in codes:
        caller = Caller(client, 1)
        heard.append([caller.ask(frame[None])[0] for frame in frames])
        caller.end()
    return np.array(heard)


def test_members_are_answered_as_each_would_be_alone(callers, codes, alone):
    """Whoever carries the request, in whatever order it names them, and some of them at times not in it."""
    heard: list[list[NDArray[np.float32]]] = [[], [], []]
    for order in ([0, 1, 2], [2, 0], [1], [1, 0], [2, 1], [2, 0, 1], [0, 2], [1, 2], [0, 1]):
        members = [index for index in order if len(heard[index]) < 6]
        asked = np.stack([codes[index, len(heard[index])] for index in members])
        answers = callers[members[-1]].ask(asked, [callers[index].member for index in members])
        for index, answer in zip(members, answers, strict=True):
            heard[index].append(answer)
    for index, answers in enumerate(heard):
        assert len(answers) >= 5
        np.testing.assert_array_equal(np.array(answers), alone[index, : len(answers)])


def test_a_frame_may_come_with_the_beginning(client, codes, alone):
    caller, silent = Caller(client, 31, codes[0, 0]), Caller(client, 32)
    np.testing.assert_array_equal(caller.begun.as_numpy("pcm")[0], alone[0, :1])
    assert silent.begun.as_numpy("pcm") is None
    np.testing.assert_array_equal(caller.ask(codes[0, 1:2]), alone[0, 1:2])
    np.testing.assert_array_equal(silent.ask(codes[2, :1]), alone[2, :1])
    for each in (caller, silent):
        each.end()


def refused(words: str):
    return pytest.raises(InferenceServerException, match=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: [*members[:2], (members[2][0], 99)], r"members\[2\]: row \d is not, or no more, that conv"),
        (lambda members: [*members[:2], (7, 13)], r"members\[2\]: row 7 is not"),
        (lambda members: [*members[:2], (-1, 13)], r"members\[2\]: row -1 is not"),
        (lambda members: [*members[:2], members[0]], "a row is named twice"),
        (lambda members: members[:2], r"codes: expected shape \[1, 2, ...\], got \[1, 3, 8\]"),
    ],
)
def test_whom_a_request_may_not_speak_for(callers, codes, alone, change, words):
    """And nothing has been done: what comes next is what would have come."""
    members = [caller.member for caller in callers]
    with refused(words) as told:
        callers[0].ask(codes[:, 0], change(members))
    assert told.value.status() == "StatusCode.INVALID_ARGUMENT"
    np.testing.assert_array_equal(callers[0].ask(codes[:, 0], members), alone[:, 0])


def test_one_bad_tensor_is_the_whole_request_s_fault_and_nothing_is_done(callers, codes, alone):
    members = [caller.member for caller in callers]
    bad = codes[:, 0].copy()
    bad[1, 3] = 1 << 40
    with refused("codes: values must be in 0"):
        callers[0].ask(bad, members)
    np.testing.assert_array_equal(callers[0].ask(codes[:, 0], members), alone[:, 0])


def test_who_has_gone_is_not_spoken_for_even_if_the_row_has_a_new_tenant(client, callers, codes, alone):
    leaver = Caller(client, 21)
    leaver.end()
    with refused("is not, or no more"):
        callers[0].ask(codes[:2, 0], [callers[0].member, leaver.member])
    tenant = Caller(client, 22)
    try:
        assert tenant.row == leaver.row
        with refused("is not, or no more"):
            callers[0].ask(codes[:2, 0], [callers[0].member, leaver.member])
        together = callers[0].ask(codes[:2, 0], [callers[0].member, tenant.member])
        np.testing.assert_array_equal(together, alone[:2, 0])
    finally:
        tenant.end()


def test_nobody_begins_for_two(client):
    caller = Caller.__new__(Caller)
    caller._client, caller._id = client, str(uuid4())
    with refused("expected one at the start of a sequence, got 2"):
        caller._infer(np.zeros((2, 8)), [(0, 1), (1, 2)], sequence_start=True)
    caller.end()
