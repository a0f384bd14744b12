"""Samplers of slots: what the models get for a conversation's sampling parameters."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.engine.sampling import AUDIO, TEXT, SamplingParams, SlotSamplers

PARAMS = SamplingParams(seed=5, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)


@pytest.fixture
def samplers() -> SlotSamplers:
    return SlotSamplers(3)


def test_text_and_audio_have_their_own_temperature_and_top_k(samplers: SlotSamplers):
    samplers.set(1, PARAMS, position=40)
    assert samplers.sampler[1, TEXT].tolist() == [5, 40, 25]
    assert samplers.sampler[1, AUDIO].tolist() == [5, 40, 250]
    np.testing.assert_allclose(samplers.temperature[1, :, 0], [0.7, 0.8])


def test_other_slots_keep_their_parameters(samplers: SlotSamplers):
    samplers.set(0, PARAMS, position=7)
    samplers.set(1, PARAMS.greedy(), position=9)
    assert samplers.sampler[0, TEXT].tolist() == [5, 7, 25]
    assert samplers.temperature[0, AUDIO, 0] == np.float32(0.8)


def test_greedy_is_temperature_zero_for_both(samplers: SlotSamplers):
    samplers.set(0, PARAMS.greedy(), position=1)
    assert not samplers.temperature[0].any()


def test_a_temperature_too_small_to_divide_by_is_greedy(samplers: SlotSamplers):
    tiny = SamplingParams(seed=5, audio_temperature=1e-30, audio_top_k=0, text_temperature=9e-4, text_top_k=0)
    samplers.set(0, tiny, position=1)
    assert not samplers.temperature[0].any()


def test_the_largest_seed_is_kept_exactly(samplers: SlotSamplers):
    samplers.set(0, SamplingParams(2**63 - 1, 0.8, 250, 0.7, 25), position=1)
    assert samplers.sampler[0, :, 0].tolist() == [2**63 - 1] * 2
