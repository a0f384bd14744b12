"""Stage 2c, decoder: codes of the agent's sentences to their sound.

The decoder sees the second half of the latent only. What it has to make follows from the codes, so that a plain loss on
samples and spectra teaches it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_repository.checkpoint.geometry import FRAME_SIZE
from model_repository.synthetic.speaking.agent import AgentSpeech
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.features import mel_filters
from model_repository.synthetic.speaking.mimi import Decoder
from model_repository.synthetic.speaking.quantizer import Codes, Floats
from model_repository.synthetic.speaking.training import initialize, reduced_precision, train
from model_repository.synthetic.speaking.voices import NAMES

BATCH = 4
FRAMES = 16
SKIPPED = 2
"""Frames at the beginning of a crop whose history it lacks."""

SILENT_FRAMES = 4
"""Of silence before and after each sentence."""

_RESOLUTIONS = ((256, 16), (512, 32), (1024, 64))
"""Windows in samples, each with its number of bands."""

_HIGH = 11_000.0
"""Hz of the highest band."""

_FLOOR = 5e-5
"""Added to magnitudes before the logarithm: low, so that noise between formants counts."""

_LEAST_LEVEL = 1e-3
"""Added to the level of the target, by which errors are divided: a crop may be silent."""

_WAVE_WEIGHT = 0.3
"""Of the error of samples: high harmonics are never in phase, and would be made weaker for it."""

_EMPHASIS = 0.95
"""Pre-emphasis of what is compared: without it the lowest harmonics outweigh the formants, which carry the words."""


def spectral_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean distance of mel magnitudes, linear and logarithmic, over three resolutions of sound [N, T].

    Bands of the mel scale weigh what makes speech understood: most bins of a linear scale are above 4 kHz.
    """
    total = torch.zeros(())
    for size, bands in _RESOLUTIONS:
        window, filters = torch.hann_window(size), torch.from_numpy(mel_filters(size, bands, _HIGH))
        mels = [
            torch.stft(sound, size, size // 4, window=window, return_complex=True).abs().transpose(1, 2) @ filters
            for sound in (output, target)
        ]
        mels = [mel / size**0.5 for mel in mels]
        logs = [torch.log(mel + _FLOOR) for mel in mels]
        scale = mels[1].mean() + _LEAST_LEVEL
        total = total + (mels[0] - mels[1]).abs().mean() / scale + (logs[0] - logs[1]).abs().mean()
    return total / len(_RESOLUTIONS)


def emphasized(sound: Tensor) -> Tensor:
    """Sound [N, T] with its high frequencies raised: [N, T - 1]."""
    return sound[:, 1:] - _EMPHASIS * sound[:, :-1]


def train_decoder(path: Path, speech: AgentSpeech, config: SpeakingConfig) -> Decoder:
    """Train on random crops of random sentences in random voices."""
    torch.manual_seed(config.seed)
    decoder = Decoder(config.geometry().mimi)

    @functools.cache
    def example(index: int, voice: str) -> tuple[Codes, Floats]:
        sentence = speech.sentences[index]
        pad = speech.silence(SILENT_FRAMES)
        codes = np.concatenate([pad, speech.codes(sentence, voice), pad])
        quiet = np.zeros(SILENT_FRAMES * FRAME_SIZE, np.float32)
        sound = np.concatenate([quiet, speech.sound(sentence, voice), quiet])
        return codes, sound.astype(np.float16)

    readers = {name: speech.reader_of(name) for name in NAMES}

    def batch(generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        sums, sounds = [], []
        for _ in range(BATCH):
            voice = NAMES[generator.integers(len(NAMES))]
            index = int(generator.choice(readers[voice]))
            codes, sound = example(index, voice)
            start = int(generator.integers(0, max(1, len(codes) - FRAMES + 1)))
            part = codes[start : start + FRAMES]
            missing = FRAMES - len(part)
            part = np.concatenate([part, speech.silence(missing)])
            samples = sound[start * FRAME_SIZE : (start + FRAMES) * FRAME_SIZE].astype(np.float32)
            sums.append(speech.quantizer.decode(part))
            sounds.append(np.pad(samples, (0, missing * FRAME_SIZE)))
        return torch.from_numpy(np.stack(sums)), torch.from_numpy(np.stack(sounds))

    def step(index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        sums, target = batch(generator)
        skipped = SKIPPED * FRAME_SIZE
        with reduced_precision():
            made = decoder(sums)
        output, target = (emphasized(sound)[:, skipped:] for sound in (made.float(), target))
        wave = functional.l1_loss(output, target) / (target.abs().mean() + _LEAST_LEVEL)
        spectral = spectral_error(output, target)
        error = float((output - target).square().mean().detach()) / (float(target.square().mean()) + 1e-9)
        return spectral + _WAVE_WEIGHT * wave, {
            "spectral": float(spectral.detach()),
            "wave": float(wave.detach()),
            "power": error,
        }

    if not path.exists():
        initialize(decoder, lambda: decoder(batch(np.random.default_rng(config.seed))[0]))
        # Speech comes out at a tenth of full scale.
        with torch.no_grad():
            decoder.decoder.last.conv.conv.weight.mul_(0.05)
    train(path, decoder, step, config.decoder_steps, rate=1e-3, seed=config.seed)
    return decoder


def decoded(decoder: Decoder, speech: AgentSpeech, codes: Codes) -> Floats:
    """Return the sound of codes 1 to 7 [F, 7]."""
    with torch.no_grad():
        return np.asarray(decoder(torch.from_numpy(speech.quantizer.decode(codes))[None])[0].numpy(), np.float32)
