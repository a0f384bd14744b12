"""`depformer` at run time: no state between frames, so any requests make a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model_repository.serving.noise import Stream
from model_repository.serving.sampler import Sampler, draw
from model_repository.serving.session import session_options, warm_up_sizes
from model_repository.serving.turns import Array, Outcome, Turn, check


class DepformerModel:
    """A turn's inputs: hidden [dim] float32, text_token [1] int64, sampler [3] int64 (seed, index of the column to
    sample, top_k), temperature [1] float32. Output: codes [8] int64 of that column.
    """

    input_names = ("hidden", "text_token", "sampler", "temperature")
    optional: frozenset[str] = frozenset()

    def __init__(self, model: Path, text_card: int, card: int) -> None:
        self._session = ort.InferenceSession(str(model), session_options(model), providers=["CPUExecutionProvider"])
        shapes = {node.name: node.shape for node in self._session.get_inputs()}
        self._dim = int(shapes["hidden"][1])
        self._draws = tuple(shapes["noise"][1:])
        self._text_card = text_card
        self._card = card

    def warm_up(self, slots: int) -> None:
        """Run once what the first callers would otherwise wait for."""
        inputs: Mapping[str, Array] = {
            "hidden": np.zeros(self._dim, np.float32),
            "text_token": np.zeros(1, np.int64),
            "sampler": np.array([0, 0, 1], np.int64),
            "temperature": np.ones(1, np.float32),
        }
        for size in warm_up_sizes(slots):
            self.run([Turn(row, False, inputs) for row in range(size)])

    def run(self, turns: Sequence[Turn]) -> Outcome:
        """See `Model.run`; rows are just places in the batch here."""
        outcome = Outcome()
        accepted: list[tuple[int, Mapping[str, Array], Sampler]] = []
        for turn in turns:
            try:
                check(turn.inputs["hidden"], "hidden", np.float32, (self._dim,))
                check(turn.inputs["text_token"], "text_token", np.int64, (1,), self._text_card)
                accepted.append((turn.row, turn.inputs, Sampler.of(turn.inputs)))
            except ValueError as error:
                outcome.errors[turn.row] = error
        if accepted:
            noise, top_k, temperature = draw(
                [sampler for _, _, sampler in accepted], Stream.AUDIO, self._card, self._draws
            )
            feeds = {
                "hidden": np.stack([inputs["hidden"] for _, inputs, _ in accepted]),
                "text_token": np.concatenate([inputs["text_token"] for _, inputs, _ in accepted]),
                "noise": noise,
                "top_k": top_k,
                "temperature": temperature,
            }
            (codes,) = self._session.run(["codes"], feeds)
            outcome.outputs = {row: {"codes": codes[index]} for index, (row, _, _) in enumerate(accepted)}
        return outcome
