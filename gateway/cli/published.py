"""Memory that the published PersonaPlex 7B takes in each variant, computed from its shapes by `make sizes`."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.manifest import Memory

ON_CPU: Mapping[str, Memory] = {
    "int4": Memory(weights=5_141_122_180, slot=802_564_144),
    "int8": Memory(weights=8_660_833_284, slot=802_564_144),
    "mixed": Memory(weights=10_590_868_484, slot=802_564_144),
    "fp16": Memory(weights=30_504_473_604, slot=1_588_734_000),
    "fp32": Memory(weights=31_130_104_836, slot=3_161_073_712),
}
"""By variant. 16-bit matrices are float32 in memory."""

ON_CUDA: Mapping[str, Memory] = {
    "int4": Memory(weights=5_311_810_692, slot=1_588_734_000),
    "int8": Memory(weights=8_857_211_908, slot=1_588_734_000),
    "mixed": Memory(weights=9_466_696_708, slot=1_588_734_000),
    "bf16": Memory(weights=15_755_203_588, slot=1_588_734_000),
    "fp16": Memory(weights=15_755_203_588, slot=1_588_734_000),
    "fp32": Memory(weights=31_130_104_836, slot=3_161_073_712),
}
