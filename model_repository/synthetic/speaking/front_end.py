"""Stage 2a, front end: SEANet's encoder learns the log-mel spectrum of what it is given, at 25 Hz.

Dense targets teach the convolutions in minutes; what is made of the spectrum is left to the transformer behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.augment import vary_line
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.engines import Sound
from model_repository.synthetic.speaking.features import SPECTRA, Basis, patches
from model_repository.synthetic.speaking.mimi import SeanetEncoder
from model_repository.synthetic.speaking.training import initialize, train

BATCH = 4
FRAMES = 14
SKIPPED = 5
"""Steps at the beginning of a crop whose history it lacks."""

STEP_SPECTRA = SPECTRA // 2

MAIN = 24
"""Components whose explained variance is printed: those with most of it."""


def crop(sounds: Sequence[Sound], frames: int, generator: np.random.Generator) -> Sound:
    """Return [1920 * frames] of a random utterance; silence where it has ended or not begun."""
    sound = sounds[int(generator.integers(len(sounds)))]
    length = frames * FRAME_SIZE
    start = int(generator.integers(-length // 2, max(1, len(sound) - length // 2)))
    output = np.zeros(length, np.float32)
    part = sound[max(0, start) : max(0, start + length)]
    offset = max(0, -start)
    output[offset : offset + len(part)] = part[: length - offset]
    return output


def fit_step_basis(sounds: Sequence[Sound], config: SpeakingConfig) -> Basis:
    """Fit the basis of 40 ms patches that the front end learns."""
    generator = np.random.default_rng([config.seed, 1])
    sample = [
        patches(vary_line(crop(sounds, FRAMES, generator), generator), STEP_SPECTRA)
        for _ in range(min(1500, 3 * len(sounds)))
    ]
    return Basis.fit(np.concatenate(sample), config.dimension)


def train_front_end(path: Path, sounds: Sequence[Sound], basis: Basis, config: SpeakingConfig) -> SeanetEncoder:
    """Train the encoder's convolutions on random crops with noise and changes of level."""
    torch.manual_seed(config.seed)
    encoder = SeanetEncoder(config.geometry().mimi)

    def batch(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        crops = [vary_line(crop(sounds, FRAMES, generator), generator) for _ in range(BATCH)]
        targets = np.stack([basis.project(patches(sound, STEP_SPECTRA)) for sound in crops])
        return torch.from_numpy(np.stack(crops))[:, None], torch.from_numpy(targets)

    if not path.exists():
        initialize(encoder, lambda: encoder(batch(np.random.default_rng(config.seed))[0]))

    def step(index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        sound, target = batch(generator)
        output = encoder(sound).transpose(1, 2)[:, SKIPPED:]
        target = target[:, SKIPPED:]
        main = (output - target)[..., :MAIN].detach().square().mean() / target[..., :MAIN].square().mean()
        return functional.mse_loss(output, target), {"explained": 1 - float(main)}

    train(path, encoder, step, config.front_end_steps, rate=2e-3, seed=config.seed)
    return encoder
