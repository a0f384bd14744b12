"""What becomes of each matrix and embedding table of a graph, and what that did to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from model_repository.quantize.blocks import Float32, TensorError
from model_repository.variants import Precision

TEXT_HEAD = "text_linear.weight"
"""Never has less than 8 bits: its products are the logits themselves."""

AUDIO_HEADS = "linears."
"""Beginning of the names of those that never have less than 16. They are small beside the rest; rounded to 8 bits they
changed twice as many audio tokens as everything else together."""


def smoothing_of(key: str) -> str:
    """The name of the tensor by which a graph multiplies what the matrix `key` reads, if the source has one."""
    return f"{key}.smoothing"


def _unknown(_key: str) -> Float32 | None:
    return None


@dataclass
class Plan:
    """`importance` gives, per matrix, the mean square of what each of its columns is multiplied with, if known.

    `errors` is filled while a graph is saved.
    """

    matrices: Precision = Precision.FP32
    importance: Callable[[str], Float32 | None] = _unknown
    errors: dict[str, TensorError] = field(default_factory=dict)

    def precision(self, key: str) -> Precision:
        """Of the matrix `key`."""
        if self.matrices in (Precision.INT8, Precision.INT4):
            if key == TEXT_HEAD:
                return Precision.INT8
            if key.startswith(AUDIO_HEADS):
                return Precision.FP16
        return self.matrices

    @property
    def tables(self) -> Precision:
        """Of embedding tables: as published, for only single rows of them are read. 8 bits would add a third to what
        int8 does to the hidden state; beside 4-bit matrices they add next to nothing, and memory is what those are for.
        """
        if self.matrices is Precision.FP32:
            return Precision.FP32
        return Precision.INT8 if self.matrices is Precision.INT4 else Precision.BF16
