"""One greedy conversation through the four served models in this process: its tokens, and the time of its frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from model_repository.evaluation.repository import Repository
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.device import CudaMemory
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import Array, run_one
from model_repository.serving.temporal import TemporalModel

TEXT, AGENT, USER = 0, slice(1, 9), slice(9, 17)
UNKNOWN = -1
STAGES = ("encode", "temporal", "depformer", "decode")


@dataclass(frozen=True, eq=False)
class Prompt:
    """The beginning of a conversation.

    embeddings: [E, dim] float32, summed input embeddings of columns 0..E-1.
    columns: [P - E, 17] int64, the rest of the prompt's columns.
    known: [17] int64, the tokens of column P that are fixed; -1 elsewhere.
    """

    embeddings: NDArray[np.float32]
    columns: NDArray[np.int64]
    known: NDArray[np.int64]

    @property
    def length(self) -> int:
        """P, the position of the first column that is not part of the prompt."""
        return len(self.embeddings) + len(self.columns)


@dataclass(frozen=True, eq=False)
class Conversation:
    """columns: [T + 1, 17] int64 from position P on; the last lacks the user's tokens (-1).

    seconds: [T, 4], of each stage of each frame. sound: [T, 1920] float32, the agent's audio.
    """

    columns: NDArray[np.int64]
    seconds: NDArray[np.float64]
    sound: NDArray[np.float32]


class Models:
    """The four models of a repository, with memory for `slots` conversations, of which one is used."""

    def __init__(self, repository: Repository, slots: int, device: CudaMemory | None = None) -> None:
        """Raises `DeviceError` if they do not fit the `device`, the CPU where it is None."""
        manifest = repository.manifest
        text_card, card = manifest["text_card"], manifest["card"]
        self.encoder = MimiModel(repository.graph("mimi_encoder"), slots, device=device)
        window = manifest["context"] - 1
        self.temporal = TemporalModel(repository.graph("temporal"), slots, text_card, card, window, device)
        self.depformer = DepformerModel(repository.graph("depformer"), text_card, card, slots, device)
        self.decoder = MimiModel(repository.graph("mimi_decoder"), slots, high=card, device=device)
        self._delayed = np.array(manifest["delays"]) > 0
        self._slots = slots

    def converse(self, prompt: Prompt, frames: NDArray[np.float32], done: Callable[[float], None]) -> Conversation:
        """Answer frames [T, 1920] greedily; `done` is called with the fraction that is done."""
        count = len(frames)
        columns = np.full((count + 1, len(self._delayed)), UNKNOWN, np.int64)
        columns[0] = prompt.known
        seconds = np.zeros((count, len(STAGES)))
        for model in (self.encoder, self.temporal, self.decoder):
            model.slots.begin(0)
        sound = np.zeros_like(frames, np.float32)
        first: dict[str, Array] = {"columns": prompt.columns, "embeddings": prompt.embeddings}
        outputs = run_one(self.temporal, 0, first | greedy(prompt.length))
        self._sample(columns[0], outputs, prompt.length)
        for index, frame in enumerate(frames):
            now, following = columns[index], columns[index + 1]
            position = prompt.length + index + 1
            times = [perf_counter()]
            codes = run_one(self.encoder, 0, {"pcm": frame})["codes"]
            delayed = self._delayed[USER]
            now[USER][~delayed] = codes[~delayed]
            following[USER][delayed] = codes[delayed]
            times.append(perf_counter())
            outputs = run_one(self.temporal, 0, {"columns": now[None]} | greedy(position))
            times.append(perf_counter())
            self._sample(following, outputs, position)
            times.append(perf_counter())
            agent = np.where(self._delayed, following, now)[AGENT]
            sound[index] = run_one(self.decoder, 0, {"codes": agent})["pcm"]
            times.append(perf_counter())
            seconds[index] = np.diff(times)
            done((index + 1) / count)
        return Conversation(columns, seconds, sound)

    def fill_states(self) -> int:
        """Write all states of all slots, so that their memory is taken; the bytes of one slot."""
        models = (self.encoder, self.temporal, self.decoder)
        return sum(model.session.fill() for model in models) // self._slots

    def _sample(self, column: NDArray[np.int64], outputs: dict[str, Array], position: int) -> None:
        """Set the tokens of the column at `position` that are not fixed. outputs: of the temporal model."""
        codes = run_one(self.depformer, 0, outputs | greedy(position))["codes"]
        if column[TEXT] == UNKNOWN:
            column[TEXT] = outputs["text_token"][0]
        agent = column[AGENT]
        np.copyto(agent, codes, where=agent == UNKNOWN)


def greedy(position: int) -> dict[str, Array]:
    """Sampling inputs of a row at `position`."""
    return {"sampler": np.array([0, position, 1], np.int64), "temperature": np.zeros(1, np.float32)}
