"""Readiness: one failed probe is not an outage, and many askers share one answer."""

from __future__ import annotations

import asyncio

import pytest

from gateway.session.readiness import Readiness


class Engine:
    """Answers what `answers` holds, in order."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def ready(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        return self.answers.pop(0)


@pytest.mark.parametrize(("answers", "expected"), [((True,), True), ((False, True), True), ((False, False), False)])
async def test_only_two_failures_in_a_row_are_an_outage(answers: tuple[bool, ...], expected: bool):
    engine = Engine(*answers)
    assert await Readiness(engine).ready() is expected  # type: ignore[arg-type]
    assert engine.asked == len(answers)


async def test_an_answer_is_shared_for_its_period():
    engine = Engine(True, False, False)
    readiness = Readiness(engine, period=0.1)  # type: ignore[arg-type]
    assert await asyncio.gather(*(readiness.ready() for _ in range(50))) == [True] * 50
    assert engine.asked == 1
    await asyncio.sleep(0.11)
    assert not await readiness.ready()
