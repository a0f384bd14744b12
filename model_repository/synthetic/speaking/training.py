"""A training loop that goes on where it stopped, and prints figures."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SAVE_SECONDS = 180.0
PRINT_SECONDS = 60.0

BFLOAT16 = torch.cpu._is_avx512_bf16_supported()
"""Whether matrix products are done in bfloat16 in `reduced_precision`: with AVX-512 BF16 it takes half the time."""

Step = Callable[[int, np.random.Generator], tuple[Tensor, Mapping[str, float]]]
"""Makes a batch from the index and the generator of its step; returns the loss and figures to print."""


def train(
    path: Path,
    model: nn.Module,
    step: Step,
    steps: int,
    *,
    rate: float,
    seed: int,
    decay: float = 0.01,
    warmup: int = 100,
    save_seconds: float = SAVE_SECONDS,
) -> None:
    """Train `model` to `steps` steps in all with AdamW and a cosine schedule, and leave its state in `path`.

    The batch of a step follows from the seed and the step, so that a run that stopped continues as if it had not.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, betas=(0.9, 0.98))
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    begin = saved_at = printed_at = time.monotonic()
    sums: dict[str, list[float]] = defaultdict(list)
    model.train()
    for index in range(first, steps):
        share = min(1.0, (index + 1) / warmup) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * index / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss, figures = step(index, np.random.default_rng([seed, index]))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{path.stem}: the loss of step {index} is {float(loss.detach())}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, value in {"loss": float(loss.detach()), **figures}.items():
            sums[name].append(value)
        now = time.monotonic()
        if now - printed_at > PRINT_SECONDS or index + 1 == steps:
            means = "  ".join(f"{name} {np.mean(values):.4f}" for name, values in sums.items())
            pace = (now - begin) / (index + 1 - first)
            print(f"{path.stem}: step {index + 1} of {steps}  {means}  {pace:.2f} s a step", flush=True)
            sums.clear()
            printed_at = now
        if now - saved_at > save_seconds or index + 1 == steps:
            _save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": index + 1})
            saved_at = now
    model.eval()


def reduced_precision() -> torch.autocast:
    """Return a context of mixed precision, where the processor is faster so."""
    return torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16)


def attend(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Scaled dot product attention in single precision: PyTorch's bfloat16 form is slower backward."""
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)


def rotations(positions: Tensor, head_dim: int, max_period: float) -> Tensor:
    """Rotary embedding of positions [..., S] as complex numbers [..., S, head_dim / 2]."""
    half = head_dim // 2
    frequencies = max_period ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[..., None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [..., head_dim] by complex numbers [..., head_dim / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2)


def _save(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load(path: Path, model: nn.Module) -> int:
    """Load what `train` left for `model`; return the number of steps."""
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    model.eval()
    return int(saved["step"])


def _convolution(module: nn.Module) -> nn.Module:
    """What holds the parameters of a module that convolves: `module.convolution`, or the module itself."""
    return getattr(module, "convolution", module)


def initialize(model: nn.Module, forward: Callable[[], object]) -> None:
    """Scale every convolution so that its output has unit deviation on real data; biases become 0.

    PyTorch's own initialization shrinks the signal layer by layer, so that deep ones begin with nothing. The last
    convolution of a residual block gets half of that.
    """

    def scale(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            target = 0.5 if ".block.3" in name else 1.0
            factor = target / (float(output.std()) + 1e-6)
            _convolution(module).weight.data.mul_(factor)
            return output * factor

        return hook

    handles = []
    for name, module in model.named_modules():
        convolution = _convolution(module)
        if isinstance(convolution, (nn.Conv1d, nn.ConvTranspose1d)) and convolution.groups == 1:
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
            handles.append(module.register_forward_hook(scale(name)))
    with torch.no_grad():
        forward()
    for handle in handles:
        handle.remove()
