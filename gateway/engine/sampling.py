"""How a conversation's tokens are drawn: temperatures, top-k and the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.engine.backend import Draw

# Logits divided by less than this overflow float32; the draw is the most likely token long before.
MIN_TEMPERATURE = 1e-3


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 is greedy; top-k 0 is the whole vocabulary; 0 <= seed < 2**63."""

    seed: int
    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int

    def greedy(self) -> Sampling:
        """The same, but always the most likely token."""
        return replace(self, audio_temperature=0.0, text_temperature=0.0)

    def text(self, position: int) -> Draw:
        """The draw of the text token of column `position`."""
        return Draw(self.seed, position, self.text_top_k, _usable(self.text_temperature))

    def audio(self, position: int) -> Draw:
        """The draw of the agent's codes of column `position`."""
        return Draw(self.seed, position, self.audio_top_k, _usable(self.audio_temperature))


def _usable(temperature: float) -> float:
    return temperature if temperature >= MIN_TEMPERATURE else 0.0
