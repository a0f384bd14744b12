"""`depformer` at run time: no state between frames, so any requests make a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from model_repository.serving.noise import Stream
from model_repository.serving.sampler import Sampler, draw
from model_repository.serving.session import session_options
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
