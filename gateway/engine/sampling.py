"""How a conversation's tokens are sampled: temperatures, top-k and the seed, for one conversation and for all slots."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

MIN_TEMPERATURE = 1e-3
"""Logits divided by less than this overflow float32. Below it sampling is greedy, which it nearly is long before."""

TEXT, AUDIO = 0, 1
"""Index of the two samplers of a slot: the text token's and the agent codes'."""

SEED, POSITION, TOP_K = 0, 1, 2
"""Columns of a sampler as the models take it."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of a conversation. Temperature 0 is greedy; top-k 0 is the whole vocabulary; 0 <= seed <
    2**63.
    """

    seed: int
    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int

    def greedy(self) -> SamplingParams:
        """The same parameters with greedy sampling."""
        return replace(self, audio_temperature=0.0, text_temperature=0.0)


class SlotSamplers:
    """The samplers of all slots as the models take them.

    sampler: [slots, 2, 3] int64, for the text token and the agent codes: seed, position of the step to sample, top-k.
    temperature: [slots, 2, 1] float32.
    """

    def __init__(self, slots: int) -> None:
        self.sampler = np.zeros((slots, 2, 3), np.int64)
        self.temperature = np.zeros((slots, 2, 1), np.float32)

    def set(self, slot: int, params: SamplingParams, position: int) -> None:
        """Give a slot a conversation's parameters; `position`: the first step that is sampled."""
        self.sampler[slot, :, SEED] = params.seed
        self.sampler[slot, :, POSITION] = position
        self.sampler[slot, :, TOP_K] = params.text_top_k, params.audio_top_k
        for stream, temperature in ((TEXT, params.text_temperature), (AUDIO, params.audio_temperature)):
            self.temperature[slot, stream] = temperature if temperature >= MIN_TEMPERATURE else 0.0
