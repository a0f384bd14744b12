"""The precision of each matrix and embedding table of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from model_repository.quantize.blocks import Float32
from model_repository.variants import Precision

TEXT_HEAD = "text_linear.weight"
"""Never has less than 8 bits: its products are the logits themselves."""

AUDIO_HEADS = "linears."
"""Prefix of matrices that never have less than 16 bits. They are small beside the rest; rounded to 8 bits they changed
twice as many audio tokens as everything else together."""


def smoothing_of(key: str) -> str:
    """Name of the tensor by which a graph multiplies the input of the matrix `key`, if the source has that tensor."""
    return f"{key}.smoothing"


@dataclass(frozen=True)
class QuantizationConfig:
    """matrices: their precision. importance: by matrix, the mean square of what each column is multiplied with, where
    it is known.
    """

    matrices: Precision = Precision.FP32
    importance: Mapping[str, Float32] = field(default_factory=dict)

    def precision(self, key: str) -> Precision:
        """Return the precision of the matrix `key`."""
        if self.matrices in (Precision.INT8, Precision.INT4):
            if key == TEXT_HEAD:
                return Precision.INT8
            if key.startswith(AUDIO_HEADS):
                return Precision.FP16
        return self.matrices

    @property
    def tables(self) -> Precision:
        """Precision of embedding tables: as published, because only single rows of them are read. 8 bits would add a
        third to what int8 does to the hidden state; beside 4-bit matrices they add next to nothing, and those are
        chosen for their memory.
        """
        if self.matrices is Precision.FP32:
            return Precision.FP32
        return Precision.INT8 if self.matrices is Precision.INT4 else Precision.BF16
