"""Stage 3b, language model: dialogues to weights."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.dialogues import PADDING, Dialogue, Material, make_dialogue
from model_repository.synthetic.speaking.language_model import LanguageModel
from model_repository.synthetic.speaking.training import reduced_precision, train

BATCH = 12
POOL = 6
"""Batches that are drawn at once and sorted by length, so that little is padded."""

SILENT_SHARE = 0.12
"""Of the silent frames, those whose audio the depth transformer is trained on: they are all alike."""

TEXT_WEIGHT, PADDING_WEIGHT, AUDIO_WEIGHT = 3.0, 0.5, 2.0


def train_language_model(path: Path, material: Material, config: SpeakingConfig) -> LanguageModel:
    """Train on dialogues that are made as it goes."""
    torch.manual_seed(config.seed)
    model = LanguageModel(config.geometry().lm)
    model.hear_centroids(torch.from_numpy(material.centroids))

    @functools.lru_cache(maxsize=1)
    def pool(number: int) -> list[Dialogue]:
        generator = np.random.default_rng([config.seed, 7, number])
        dialogues = [make_dialogue(material, config.text_card, generator) for _ in range(POOL * BATCH)]
        return sorted(dialogues, key=lambda dialogue: len(dialogue.columns))

    def step(index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        order = np.random.default_rng([config.seed, 8, index // POOL]).permutation(POOL)
        chosen = order[index % POOL]
        return dialogue_loss(model, pool(index // POOL)[chosen * BATCH : (chosen + 1) * BATCH], generator)

    train(path, model, step, config.language_model_steps, rate=2e-3, seed=config.seed, decay=0.02)
    model.fix_embeddings()
    return model


def dialogue_loss(
    model: LanguageModel, dialogues: Sequence[Dialogue], generator: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch, with the cross-entropies of text and of each frame's codes."""
    longest = max(len(dialogue.columns) for dialogue in dialogues)
    columns = np.zeros((len(dialogues), longest, dialogues[0].columns.shape[1]), np.int64)
    positions = np.zeros((len(dialogues), longest), np.int64)
    free, audio = np.zeros((2, len(dialogues), longest), bool)
    for row, dialogue in enumerate(dialogues):
        length = len(dialogue.columns)
        columns[row, :length] = dialogue.columns
        positions[row, :length] = dialogue.positions
        # The hidden state of a column predicts the next column.
        free[row, dialogue.prompt : length - 1] = True
        following = dialogue.speaking[1:] | dialogue.speaking[:-1]
        kept = following | (generator.random(length - 1) < SILENT_SHARE)
        audio[row, dialogue.prompt : length - 1] = kept[dialogue.prompt :]

    tokens = torch.from_numpy(columns)
    with reduced_precision():
        hidden = model.hidden(tokens, torch.from_numpy(positions)).float()
    rows, steps = np.nonzero(free)
    text = tokens[rows, steps + 1, 0]
    text_losses = functional.cross_entropy(model.text_logits(hidden[rows, steps]), text, reduction="none")
    weights = torch.where(text == PADDING, PADDING_WEIGHT, TEXT_WEIGHT)
    text_loss = (text_losses * weights).sum() / weights.sum()

    rows, steps = np.nonzero(audio)
    targets = tokens[rows, steps + 1, : 1 + AGENT_CODEBOOKS]
    with reduced_precision():
        logits = model.audio_logits(hidden[rows, steps], targets).float()
    audio_loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].T.flatten())
    spoken = float(text_losses[text != PADDING].mean().detach())
    return text_loss + AUDIO_WEIGHT * audio_loss, {"text": spoken, "audio": float(audio_loss.detach())}
