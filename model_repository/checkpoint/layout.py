"""The tensors a checkpoint's two weight files must hold: names and shapes, from the geometry alone."""

from __future__ import annotations

import re

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry, MimiGeometry, TransformerGeometry
from model_repository.checkpoint.weights.tensors import Shape, TensorSource, renamed
from model_repository.errors import CheckpointError

_LEGACY_BUFFERS = {
    "_initialized": ("inited",),
    "cluster_usage": ("cluster_size",),
    "embedding_sum": ("embed_avg", "embed_sum"),
}
"""Older names of a codebook's buffers, which the reference's loader accepts too."""

_DEPTH_STEP = re.compile(r"^(?:depformer_in|linears|depformer\.layers\.\d+\.gating)\.(\d{1,9})\.")
_DEPTH_EMBEDDING = re.compile(r"^depformer_emb\.(\d{1,9})\.")
_REST_CODEBOOK = re.compile(r"^quantizer\.rvq_rest\.vq\.layers\.(\d{1,9})\.")
_LAYER = re.compile(r"^(.+?)\.layers\.(\d+)\.")


def lm_shapes(lm: LmGeometry) -> dict[str, Shape]:
    """Shape of every tensor of `model.safetensors`, by name, all depth steps included."""
    temporal, depth, steps = lm.temporal, lm.depformer, lm.depformer_steps
    shapes: dict[str, Shape] = {}
    for stream in range(lm.num_streams - 1):
        shapes[f"emb.{stream}.weight"] = (lm.card + 1, temporal.dim)
    shapes["text_emb.weight"] = (lm.text_card + 1, temporal.dim)
    shapes["text_linear.weight"] = (lm.text_card, temporal.dim)
    shapes["out_norm.alpha"] = (1, 1, temporal.dim)
    for index in range(temporal.num_layers):
        layer = f"transformer.layers.{index}"
        shapes |= _rms_norms(layer, temporal)
        shapes |= _attention(layer, temporal)
        shapes |= _gating(f"{layer}.gating", temporal)

    shapes["depformer_text_emb.weight"] = (lm.text_card + 1, depth.dim)
    for step in range(steps):
        shapes[f"depformer_in.{step}.weight"] = (depth.dim, temporal.dim)
        shapes[f"linears.{step}.weight"] = (lm.card, depth.dim)
    for step in range(steps - 1):
        shapes[f"depformer_emb.{step}.weight"] = (lm.card + 1, depth.dim)
    for index in range(depth.num_layers):
        layer = f"depformer.layers.{index}"
        shapes |= _rms_norms(layer, depth)
        shapes |= _attention(layer, depth, packed=steps)
        for step in range(steps):
            shapes |= _gating(f"{layer}.gating.{step}", depth)
    return shapes


def mimi_shapes(mimi: MimiGeometry) -> dict[str, Shape]:
    """Shape of every tensor of the Mimi file, by name, all codebooks included."""
    shapes = _seanet(mimi)
    transformer = mimi.transformer
    for side in ("encoder", "decoder"):
        for index in range(transformer.num_layers):
            layer = f"{side}_transformer.transformer.layers.{index}"
            shapes |= _attention(layer, transformer)
            shapes[f"{layer}.linear1.weight"] = (transformer.hidden, transformer.dim)
            shapes[f"{layer}.linear2.weight"] = (transformer.dim, transformer.hidden)
            for residual in (1, 2):
                shapes[f"{layer}.norm{residual}.weight"] = (transformer.dim,)
                shapes[f"{layer}.norm{residual}.bias"] = (transformer.dim,)
                shapes[f"{layer}.layer_scale_{residual}.scale"] = (transformer.dim,)
    for branch, codebooks in (("rvq_first", 1), ("rvq_rest", mimi.num_codebooks - 1)):
        shapes[f"quantizer.{branch}.input_proj.weight"] = (mimi.codebook_dim, mimi.dimension, 1)
        shapes[f"quantizer.{branch}.output_proj.weight"] = (mimi.dimension, mimi.codebook_dim, 1)
        for index in range(codebooks):
            codebook = f"quantizer.{branch}.vq.layers.{index}._codebook"
            shapes[f"{codebook}._initialized"] = (1,)
            shapes[f"{codebook}.cluster_usage"] = (mimi.codebook_size,)
            shapes[f"{codebook}.embedding_sum"] = (mimi.codebook_size, mimi.codebook_dim)
    resampling_kernel = 2 * mimi.steps_per_frame
    shapes["downsample.conv.conv.conv.weight"] = (mimi.dimension, mimi.dimension, resampling_kernel)
    shapes["upsample.convtr.convtr.convtr.weight"] = (mimi.dimension, 1, resampling_kernel)
    return shapes


def is_required(name: str) -> bool:
    """Whether serving needs this tensor: not the user's depth steps, the unused codebooks, and the training flags."""
    if name.endswith("._initialized"):
        return False
    for pattern, used in (
        (_DEPTH_STEP, AGENT_CODEBOOKS),
        (_DEPTH_EMBEDDING, AGENT_CODEBOOKS - 1),
        (_REST_CODEBOOK, AGENT_CODEBOOKS - 1),
    ):
        match = pattern.match(name)
        if match:
            return int(match[1]) < used
    return True


def check_tensors(file: str, tensors: TensorSource, shapes: dict[str, Shape]) -> None:
    """Compares a file's header with what it must hold.

    Raises `CheckpointError`, naming the tensor, for the first one that is missing, has another shape, or belongs to
    a layer the geometry does not have.
    """
    for name, expected in shapes.items():
        if name not in tensors:
            if is_required(name):
                raise CheckpointError(f"{file}: missing tensor {name!r} (expected shape {list(expected)})")
            continue
        found = tensors.shape(name)
        if found != expected:
            raise CheckpointError(
                f"{file}: wrong shape of tensor {name!r}: expected {list(expected)}, got {list(found)}"
            )
    layers = {match[0] for match in map(_LAYER.match, shapes) if match}
    for name in tensors.names():
        match = _LAYER.match(name)
        if match and match[0] not in layers and is_required(name):
            raise CheckpointError(f"{file}: unexpected tensor {name!r}: the geometry has no layer {match[2]} there")


def with_current_names(mimi: TensorSource) -> TensorSource:
    """The same tensors, with the legacy names of codebook buffers replaced by today's."""
    names = {}
    for stored in mimi.names():
        codebook, _, buffer = stored.rpartition(".")
        for current, legacy in _LEGACY_BUFFERS.items():
            if codebook.endswith("._codebook") and buffer in legacy and f"{codebook}.{current}" not in mimi:
                names[stored] = f"{codebook}.{current}"
    return renamed(mimi, names)


def _rms_norms(layer: str, transformer: TransformerGeometry) -> dict[str, Shape]:
    return {f"{layer}.norm{residual}.alpha": (1, 1, transformer.dim) for residual in (1, 2)}


def _attention(layer: str, transformer: TransformerGeometry, packed: int = 1) -> dict[str, Shape]:
    """Projections of one layer; `packed` depth steps lie below one another along the rows."""
    dim = transformer.dim
    return {
        f"{layer}.self_attn.in_proj_weight": (packed * 3 * dim, dim),
        f"{layer}.self_attn.out_proj.weight": (packed * dim, dim),
    }


def _gating(prefix: str, transformer: TransformerGeometry) -> dict[str, Shape]:
    return {
        f"{prefix}.linear_in.weight": (2 * transformer.hidden, transformer.dim),
        f"{prefix}.linear_out.weight": (transformer.dim, transformer.hidden),
    }


def _seanet(mimi: MimiGeometry) -> dict[str, Shape]:
    """Both convolutional halves; per stage the encoder has (block, ELU, conv), the decoder (ELU, convtr, block)."""
    shapes: dict[str, Shape] = {}

    def convolution(name: str, weight: Shape, channels: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = (channels,)

    def block(name: str, channels: int) -> None:
        inner = channels // mimi.compress
        convolution(f"{name}.block.1.conv.conv", (inner, channels, mimi.residual_kernel_size), inner)
        convolution(f"{name}.block.3.conv.conv", (channels, inner, 1), channels)

    stages = len(mimi.ratios)
    last = 3 * stages + 2
    width = mimi.n_filters
    convolution("encoder.model.0.conv.conv", (width, 1, mimi.kernel_size), width)
    for stage, ratio in enumerate(reversed(mimi.ratios)):
        block(f"encoder.model.{3 * stage + 1}", width)
        convolution(f"encoder.model.{3 * stage + 3}.conv.conv", (2 * width, width, 2 * ratio), 2 * width)
        width *= 2
    convolution(f"encoder.model.{last}.conv.conv", (mimi.dimension, width, mimi.last_kernel_size), mimi.dimension)

    convolution("decoder.model.0.conv.conv", (width, mimi.dimension, mimi.kernel_size), width)
    for stage, ratio in enumerate(mimi.ratios):
        convolution(f"decoder.model.{3 * stage + 2}.convtr.convtr", (width, width // 2, 2 * ratio), width // 2)
        width //= 2
        block(f"decoder.model.{3 * stage + 3}", width)
    convolution(f"decoder.model.{last}.conv.conv", (1, width, mimi.last_kernel_size), 1)
    return shapes
