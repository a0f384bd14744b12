"""Concurrent conversations through Triton: results equal those of single ones, and batches are shared."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from tests.effort import effort
from tests.end_to_end.conftest import Answer, Service, respond, wav

SLOTS = 8
STAGES = ("mimi_encoder", "temporal", "depformer", "mimi_decoder")

VOICES = ("NATF0", "NATM1", "VARF2", "VARM3")


@dataclass(frozen=True)
class User:
    """One conversation: its own recording, persona, sampling and length."""

    audio: bytes
    fields: dict[str, Any]

    @classmethod
    def number(cls, index: int, frames: int) -> User:
        random = np.random.default_rng(index)
        pcm = random.standard_normal(1920 * (2 + index % 3)).astype(np.float32) * 0.1
        fields: dict[str, Any] = {
            "voice": VOICES[index % len(VOICES)],
            "text_prompt": " ".join(["You are caller", str(index), "and you like to talk."][: 1 + index % 3]),
            "seed": index,
            "max_steps": frames,
        }
        if index % 3 == 0:
            fields["greedy"] = True
        return cls(wav(pcm), fields)

    def ask(self, client: httpx.Client) -> Answer:
        return respond(client, self.audio, **self.fields)


@pytest.fixture(scope="module")
def users() -> list[User]:
    return [User.number(index, 30 + 5 * index) for index in range(SLOTS)]


@pytest.fixture(scope="module")
def alone(tiny_service: Service, users: list[User]) -> list[Answer]:
    with tiny_service.client() as client:
        return [user.ask(client) for user in users]


def test_eight_concurrent_conversations_equal_single_ones(tiny_service: Service, users, alone):
    """Different prompts, lengths, start times and orders: equal to the last bit."""
    random = np.random.default_rng(0)
    for delay in (0.0, 0.05, 0.2):
        order = [int(index) for index in random.permutation(SLOTS)]
        with tiny_service.client() as client, ThreadPoolExecutor(SLOTS) as pool:

            def late(position: int, delay: float = delay, order: list[int] = order, client=client) -> Answer:
                time.sleep(delay * position)
                return users[order[position]].ask(client)

            answers = list(pool.map(late, range(SLOTS)))
        tiny_service.wait_until_free()
        for position, index in enumerate(order):
            assert answers[position].same_as(alone[index]), f"user {index} at delay {delay}"


def test_batches_are_shared(tiny_service: Service, users):
    """Triton's count of executions is less than a quarter of the steps of eight conversations."""
    frames = 60
    before = {model: tiny_service.counts(model) for model in STAGES}
    equal = [User(user.audio, user.fields | {"max_steps": frames}) for user in users]
    with tiny_service.client() as client, ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(lambda user: user.ask(client), equal))
    tiny_service.wait_until_free()
    for model in STAGES:
        done = tiny_service.counts(model) - before[model]
        assert SLOTS * frames / done.executions > 4, model


def test_disconnecting_clients_change_nothing_for_others(tiny_service: Service, users, alone):
    stop = threading.Event()

    def vanish() -> None:
        """Start conversations and close each connection in the middle of its stream."""
        while not stop.is_set():
            with tiny_service.client() as client:
                files = {"audio": ("user.wav", users[7].audio, "audio/wav")}
                data = {"stream": "true", "max_steps": "200"}
                with client.stream("POST", "/v1/respond", files=files, data=data) as response:
                    if response.status_code == 200:
                        next(response.iter_bytes())

    with tiny_service.client() as client, ThreadPoolExecutor(6) as pool:
        disconnecting = [pool.submit(vanish) for _ in range(3)]
        answers = list(pool.map(lambda index: users[index].ask(client), range(3)))
        stop.set()
        for task in disconnecting:
            task.result()
    assert all(answer.same_as(alone[index]) for index, answer in enumerate(answers))
    tiny_service.wait_until_free()


@pytest.mark.effort
def test_after_many_conversations_nothing_has_changed(tiny_service: Service, users, alone):
    short = [User.number(index, 6) for index in range(effort(40, 200))]
    with tiny_service.client() as client, ThreadPoolExecutor(SLOTS) as pool:
        list(pool.map(lambda user: user.ask(client), short))
        again = list(pool.map(lambda user: user.ask(client), users))
    assert all(answer.same_as(alone[index]) for index, answer in enumerate(again))
    tiny_service.wait_until_free()
