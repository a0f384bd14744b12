"""Stage 3b, language model: dialogues to weights."""

from __future__ import annotations

import functools
import itertools
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
"""Batches that are drawn at once, sorted by length and cut into equal numbers of columns: little is padded."""

SILENT_SHARE = 0.12
"""Of the silent frames, those whose audio the depth transformer is trained on: they are all alike."""

TEXT_WEIGHT, PADDING_WEIGHT, AUDIO_WEIGHT = 3.0, 0.5, 2.0
"""Padding counts as text where the agent stops because it is interrupted."""


def train_language_model(path: Path, material: Material, config: SpeakingConfig) -> LanguageModel:
    """Train on dialogues that are made as it goes."""
    torch.manual_seed(config.seed)
    model = LanguageModel(config.geometry().lm)
    model.hear_centroids(torch.from_numpy(material.centroids))

    @functools.lru_cache(maxsize=1)
    def pool(number: int) -> list[list[Dialogue]]:
        generator = np.random.default_rng([config.seed, 7, number])
        dialogues = [make_dialogue(material, config.text_card, generator) for _ in range(POOL * BATCH)]
        found = batches(dialogues)
        return [found[position] for position in generator.permutation(POOL)]

    def step(index: int, generator: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return dialogue_loss(model, pool(index // POOL)[index % POOL], generator)

    train(path, model, step, config.language_model_steps, rate=2e-3, seed=config.seed, decay=0.02)
    model.fix_embeddings()
    return model


def batches(dialogues: Sequence[Dialogue]) -> list[list[Dialogue]]:
    """Cut POOL * BATCH dialogues, sorted by length, into POOL batches of about as many columns."""
    by_length = sorted(dialogues, key=lambda dialogue: len(dialogue.columns))
    columns = np.cumsum([len(dialogue.columns) for dialogue in by_length])
    cuts = [0]
    for part in range(1, POOL):
        even = int(np.searchsorted(columns, columns[-1] * part / POOL))
        # No batch is empty, however long the longest dialogue is.
        cuts.append(int(np.clip(even, cuts[-1] + 1, len(by_length) - POOL + part)))
    return [by_length[begin:end] for begin, end in itertools.pairwise([*cuts, len(by_length)])]


def dialogue_loss(
    model: LanguageModel, dialogues: Sequence[Dialogue], generator: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a batch, with the cross-entropies of text and of each frame's codes."""
    longest = max(len(dialogue.columns) for dialogue in dialogues)
    columns = np.zeros((len(dialogues), longest, dialogues[0].columns.shape[1]), np.int64)
    positions = np.zeros((len(dialogues), longest), np.int64)
    free, audio, stopped = np.zeros((3, len(dialogues), longest), bool)
    for row, dialogue in enumerate(dialogues):
        length = len(dialogue.columns)
        columns[row, :length] = dialogue.columns
        positions[row, :length] = dialogue.positions
        # The hidden state of a column predicts the next column.
        free[row, dialogue.prompt : length - 1] = True
        stopped[row, : length - 1] = dialogue.stopped[1:]
        following = dialogue.speaking[1:] | dialogue.speaking[:-1] | dialogue.stopped[1:]
        kept = following | (generator.random(length - 1) < SILENT_SHARE)
        audio[row, dialogue.prompt : length - 1] = kept[dialogue.prompt :]

    tokens = torch.from_numpy(columns)
    with reduced_precision():
        hidden = model.hidden(tokens, torch.from_numpy(positions)).float()
    rows, steps = np.nonzero(free)
    text = tokens[rows, steps + 1, 0]
    text_losses = functional.cross_entropy(model.text_logits(hidden[rows, steps]), text, reduction="none")
    is_filler = (text == PADDING) & ~torch.from_numpy(stopped[rows, steps])
    weights = torch.where(is_filler, PADDING_WEIGHT, TEXT_WEIGHT)
    text_loss = (text_losses * weights).sum() / weights.sum()

    rows, steps = np.nonzero(audio)
    targets = tokens[rows, steps + 1, : 1 + AGENT_CODEBOOKS]
    with reduced_precision():
        logits = model.audio_logits(hidden[rows, steps], targets).float()
    audio_loss = functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].T.flatten())
    spoken = float(text_losses[text != PADDING].mean().detach())
    return text_loss + AUDIO_WEIGHT * audio_loss, {"text": spoken, "audio": float(audio_loss.detach())}
