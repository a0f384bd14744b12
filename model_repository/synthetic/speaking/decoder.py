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
from model_repository.synthetic.speaking.mimi import Decoder
from model_repository.synthetic.speaking.quantizer import Codes, Floats
from model_repository.synthetic.speaking.training import initialize, train
from model_repository.synthetic.speaking.voices import NAMES

BATCH = 3
FRAMES = 16
SKIPPED = 2
"""Frames at the beginning of a crop whose history it lacks."""

SILENT_FRAMES = 4
"""Of silence before and after each sentence."""

_FFTS = (256, 512, 1024)
_FLOOR = 1e-3


def spectral_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean distance of magnitudes, linear and logarithmic, over three resolutions of sound [N, T]."""
    total = torch.zeros(())
    for size in _FFTS:
        window = torch.hann_window(size)
        spectra = [
            torch.stft(sound, size, size // 4, window=window, return_complex=True).abs() / size**0.5
            for sound in (output, target)
        ]
        logs = [torch.log(spectrum + _FLOOR) for spectrum in spectra]
        scale = spectra[1].mean() + _FLOOR
        total = total + (spectra[0] - spectra[1]).abs().mean() / scale + (logs[0] - logs[1]).abs().mean()
    return total / len(_FFTS)


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
        output, target = decoder(sums)[:, skipped:], target[:, skipped:]
        wave = functional.l1_loss(output, target) / (target.abs().mean() + _FLOOR)
        spectral = spectral_error(output, target)
        error = float((output - target).square().mean().detach()) / (float(target.square().mean()) + 1e-9)
        return spectral + wave, {"spectral": float(spectral.detach()), "wave": float(wave.detach()), "power": error}

    if not path.exists():
        initialize(decoder, lambda: decoder(batch(np.random.default_rng(config.seed))[0]))
        # Speech comes out at a tenth of full scale.
        with torch.no_grad():
            decoder.decoder.last.conv.conv.weight.mul_(0.05)
    train(path, decoder, step, config.decoder_steps, rate=2e-3, seed=config.seed)
    return decoder


def decoded(decoder: Decoder, speech: AgentSpeech, codes: Codes) -> Floats:
    """Return the sound of codes 1 to 7 [F, 7]."""
    with torch.no_grad():
        return np.asarray(decoder(torch.from_numpy(speech.quantizer.decode(codes))[None])[0].numpy(), np.float32)
