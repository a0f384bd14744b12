"""Runs a repository over a given conversation, token for token, and keeps what it thinks at every column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_repository.evaluation.conversation import AGENT, TEXT, Prompt
from model_repository.evaluation.probe import Probe, force_codes, load
from model_repository.evaluation.repository import Repository
from model_repository.serving.device import DeviceMemory
from model_repository.serving.row_request import Array
from model_repository.serving.session import StatefulSession


@dataclass(frozen=True, eq=False)
class Record:
    """What a repository thinks at T columns whose successors are given.

    hidden: [T, dim] float32, after the final norm. text_logits: [T, text_card] float32, for the next column's text.
    audio_logits: [T, 8, card] float32, for the next column's agent codebooks, each given those before it.
    layers: [K, L, dim] float32, the residual stream after each layer at the K columns asked for.
    """

    hidden: NDArray[np.float32]
    text_logits: NDArray[np.float32]
    audio_logits: NDArray[np.float32]
    layers: NDArray[np.float32]

    def save(self, folder: Path) -> None:
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Mapped, not read."""
        return cls(**{field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)})


def follow(
    repository: Repository,
    prompt: Prompt,
    columns: NDArray[np.int64],
    layers_at: Sequence[int],
    done: Callable[[float], None],
) -> Record:
    """Feed the prompt and then columns [T + 1, 17] but the last, one by one as they are served.

    `layers_at` are indices of columns; `done` is called with the fraction that is done.
    """
    device = repository.device()
    temporal = _Temporal(repository, prompt, device)
    depformer = _Depformer(repository, device)
    count = len(columns) - 1
    hidden, text, audio = [], [], []
    layers = np.zeros((len(layers_at), repository.layers, repository.manifest["dim"]), np.float32)
    for index in range(count):
        values = temporal.step(columns[index][None, None])
        hidden.append(values["hidden"])
        text.append(values["text_logits"])
        audio.append(depformer.logits(values["hidden"], columns[index + 1]))
        if index in layers_at:
            layers[list(layers_at).index(index)] = [values[name][-1] for name in temporal.layers]
        done((index + 1) / count)
    return Record(np.stack(hidden), np.stack(text), np.stack(audio), layers)


class _Temporal:
    """The temporal model after a prompt."""

    def __init__(self, repository: Repository, prompt: Prompt, device: DeviceMemory | None) -> None:
        model = repository.graph("temporal")
        self.layers = [f"layers.{index}.out" for index in range(repository.layers)]
        self._probe = Probe(model, load(model), ["hidden", "text_logits", *self.layers], device)
        self._dim = int(repository.manifest["dim"])
        self._window = int(repository.manifest["context"]) - 1
        self._position = 0
        columns = np.full((1, prompt.length, prompt.columns.shape[1]), -1, np.int64)
        columns[0, len(prompt.embeddings) :] = prompt.columns
        embeddings = np.zeros((1, prompt.length, self._dim), np.float32)
        embeddings[0, : len(prompt.embeddings)] = prompt.embeddings
        while (at := self._position) < prompt.length:
            # A chunk must not wrap around the ring of keys; past its end columns go one by one.
            size = max(1, min(StatefulSession.chunk, self._window - at))
            self.step(columns[:, at : at + size], embeddings[:, at : at + size])

    def step(self, columns: NDArray[np.int64], embeddings: NDArray[np.float32] | None = None) -> dict[str, Array]:
        """columns [1, S, 17] -> the values of the last one (of the layers, of each)."""
        if embeddings is None:
            embeddings = np.zeros((*columns.shape[:2], self._dim), np.float32)
        values = self._probe.run(
            columns=columns,
            embeddings=embeddings,
            offsets=np.arange(columns.shape[1]),
            position=np.array([self._position], np.int64),
            filled=np.array([min(self._position + columns.shape[1], self._window)], np.int64),
            noise=np.full((1, 1), 0.5, np.float32),
            top_k=np.ones(1, np.int64),
            temperature=np.zeros(1, np.float32),
        )
        self._position += columns.shape[1]
        return values


class _Depformer:
    """The depth transformer, led by given tokens."""

    def __init__(self, repository: Repository, device: DeviceMemory | None) -> None:
        model = repository.graph("depformer")
        graph = load(model)
        self._steps = int(repository.manifest["codebooks"])
        self._forced = force_codes(graph, self._steps)
        self._logits = [f"logits.{step}" for step in range(self._steps)]
        self._probe = Probe(model, graph, self._logits, device)
        self._noise = np.full((1, *self._probe.shapes["noise"]), 0.5, np.float32)

    def logits(self, hidden: NDArray[np.float32], column: NDArray[np.int64]) -> NDArray[np.float32]:
        """[8, card] for the agent's tokens of `column` [17], given its text and each codebook's predecessors."""
        codes = column[AGENT]
        values = self._probe.run(
            hidden=hidden[None],
            text_token=column[None, TEXT],
            noise=self._noise,
            top_k=np.ones(1, np.int64),
            temperature=np.zeros(1, np.float32),
            **{name: codes[None, step] for step, name in enumerate(self._forced)},
        )
        return np.stack([values[name] for name in self._logits])
