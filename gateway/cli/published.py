"""Memory that the published PersonaPlex 7B takes in each variant, computed from its shapes by `make sizes`."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.manifest import Memory

ON_CPU: Mapping[str, Memory] = {
    "int4": Memory(weights=5_141_285_312, slot=802_568_224),
    "int8": Memory(weights=8_660_996_416, slot=802_568_224),
    "mixed": Memory(weights=10_591_031_616, slot=802_568_224),
    "fp16": Memory(weights=30_504_636_736, slot=1_588_738_080),
    "fp32": Memory(weights=31_130_267_968, slot=3_161_077_792),
}
"""By variant. 16-bit matrices are float32 in memory."""

ON_CUDA: Mapping[str, Memory] = {
    "int4": Memory(weights=5_311_973_824, slot=1_588_738_080),
    "int8": Memory(weights=8_857_375_040, slot=1_588_738_080),
    "mixed": Memory(weights=9_466_859_840, slot=1_588_738_080),
    "bf16": Memory(weights=15_755_366_720, slot=1_588_738_080),
    "fp16": Memory(weights=15_755_366_720, slot=1_588_738_080),
    "fp32": Memory(weights=31_130_267_968, slot=3_161_077_792),
}
