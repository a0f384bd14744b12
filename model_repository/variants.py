"""Variants: in which precision a repository keeps its weights, and its keys and values.

Names are the field's: `int8` and `int4` are what others publish as `int8-nb-dep_gint8` and `int4-nb-dep_gint8` (block
quantized temporal transformer, 8-bit depformer), `mixed` keeps the depformer at 16 bits. Mimi is always float32.

On a CPU everything between the matrices is float32; on CUDA it has 16 bits as far as the reference's has (see
`Variant.activations`), and so have keys and values: int8 ones need an operator of our own there, and are a choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Device(StrEnum):
    """Where a repository's graphs run."""

    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Of a matrix's elements. `INT8` and `INT4` have a scale for every block of a row."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class CachePrecision(StrEnum):
    """Of a key's or value's elements; `INT8` has one scale for each layer's keys and one for its values."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


@dataclass(frozen=True)
class Variant:
    """`temporal` and `depformer` are the precisions of their matrices, `cache` that of keys and values by default.

    `activations` is that of products, rotations, attention and of what goes into them. The residual stream, norms,
    logits and sampling are float32 in every variant: a stream of 16 bits is rounded at every layer. With bfloat16 the
    hidden state of 32 layers of outlier weights then has 9 times the error (1 - cosine 1.8e-4 instead of 2.1e-5).
    """

    name: str
    temporal: Precision
    depformer: Precision
    cache: CachePrecision
    device: Device = Device.CPU
    activations: Precision = Precision.FP32

    @property
    def calibrated(self) -> bool:
        """Whether its quantizers look at what a temporal matrix is multiplied with."""
        return self.temporal in (Precision.INT8, Precision.INT4)


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("fp32", Precision.FP32, Precision.FP32, CachePrecision.FP32),
        Variant("fp16", Precision.FP16, Precision.FP16, CachePrecision.FP16),
        Variant("int8", Precision.INT8, Precision.INT8, CachePrecision.INT8),
        Variant("int4", Precision.INT4, Precision.INT8, CachePrecision.INT8),
        Variant("mixed", Precision.INT8, Precision.FP16, CachePrecision.INT8),
    )
}

_BF16 = (CachePrecision.BF16, Device.CUDA, Precision.BF16)

CUDA_VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("fp32", Precision.FP32, Precision.FP32, CachePrecision.FP32, Device.CUDA),
        Variant("fp16", Precision.FP16, Precision.FP16, CachePrecision.FP16, Device.CUDA, Precision.FP16),
        Variant("bf16", Precision.BF16, Precision.BF16, *_BF16),
        Variant("int8", Precision.INT8, Precision.INT8, *_BF16),
        Variant("int4", Precision.INT4, Precision.INT8, *_BF16),
        Variant("mixed", Precision.INT8, Precision.BF16, *_BF16),
    )
}


def variants_of(device: Device) -> Mapping[str, Variant]:
    """By name, those that can be built for `device`."""
    return CUDA_VARIANTS if device is Device.CUDA else VARIANTS
