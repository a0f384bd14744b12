"""How long each model of the published 7B takes on a GPU: estimates, none of them measured on one.

The estimates were made for an H200 (4.8 TB/s, 75 to 85 % of it) from the kernels that ONNX Runtime 1.31 launches for
the bf16 graphs, in milliseconds of a frame with full windows:

                        1 row    32 rows    64 rows
    weights, GEMM         3.5        3.4        3.6
    keys and values       0.5      13-14      26-28    (attention by cuDNN)
    small kernels         2.2        2.3        2.3
    text sampling         0          1.0        2.1
    depformer             3.5        3.5        3.7
    Mimi, both models     1.8        2.6      3.5-4

A profile is a straight line through these: time per run, per row and per filled position of a row. On an H100
(3.35 TB/s) weights, keys and values take 4.8 / 3.35 times as long; the rest is bound by launches and is the same. With
8-bit keys and values, for which a kernel is yet to be written, 128 full windows are 100.6 GB, or 26 ms on an H200.

What fits: a slot of bf16 keys and values takes 1.59 GB, the weights 15.8 GB. An H100 of 80 GB holds some 36 slots, an
H200 of 141 GB some 75, and 128 slots need 8-bit ones. A profile does not check that.

A run of a prefill (64 positions of one row) reads the weights once, as a step does. A prefix restored on the device is
131 MB per 250 positions in 64 copies: about 0.2 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from loadtest.fake_device.timed_session import Timing

WINDOW = 2999
"""Positions of a full window of the published model."""

_BANDWIDTH_RATIO = 4.8 / 3.35
"""H200 over H100."""

_RESTORE = 0.2e-3 / 250


class Profile(StrEnum):
    """A GPU and the precision of keys and values."""

    H100 = "h100"
    H200 = "h200"
    H200_INT8 = "h200-int8"


def _timings(weights_ms: float, kv_row_ms: float) -> dict[str, Timing]:
    """weights_ms: of the temporal model. kv_row_ms: for the keys and values of one row with a full window."""
    small_ms, sampling_row_ms = 2.2, 2.1 / 64
    mimi = Timing(run=0.875e-3, row=0.0155e-3)
    return {
        "mimi_encoder": mimi,
        "temporal": Timing(
            run=(weights_ms + small_ms) * 1e-3,
            row=sampling_row_ms * 1e-3,
            position=kv_row_ms * 1e-3 / WINDOW,
            restore=_RESTORE,
            window=WINDOW,
        ),
        "depformer": Timing(run=3.5e-3, row=0.003e-3),
        "mimi_decoder": mimi,
    }


PROFILES: Mapping[Profile, Mapping[str, Timing]] = {
    Profile.H100: _timings(3.5 * _BANDWIDTH_RATIO, 27 / 64 * _BANDWIDTH_RATIO),
    Profile.H200: _timings(3.5, 27 / 64),
    Profile.H200_INT8: _timings(3.5, 26 / 128),
}
"""By model."""
