"""Draws: what determines them and what greedy means."""

from __future__ import annotations

from gateway.engine.backend import Draw
from gateway.engine.sampling import Sampling

SAMPLING = Sampling(seed=5, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)


def test_text_and_audio_have_their_own_temperature_and_top_k():
    assert SAMPLING.text(40) == Draw(seed=5, position=40, top_k=25, temperature=0.7)
    assert SAMPLING.audio(40) == Draw(seed=5, position=40, top_k=250, temperature=0.8)


def test_greedy_is_temperature_zero_for_both():
    assert SAMPLING.greedy().text(1).temperature == 0
    assert SAMPLING.greedy().audio(1).temperature == 0


def test_a_temperature_too_small_to_divide_by_is_greedy():
    tiny = Sampling(seed=5, audio_temperature=1e-30, audio_top_k=0, text_temperature=9e-4, text_top_k=0)
    assert tiny.audio(1).temperature == 0
    assert tiny.text(1).temperature == 0
