"""What shape a checkpoint has: the published 7B by default, overridden by the sections of `config.json`.

Defaults are the published release's (loader constants of the reference and the shapes of its tensors). The published
`config.json` carries no geometry; a checkpoint of another size states it in the sections `lm`, `seanet`, `quantizer`
and `mimi_transformer`, with the reference's own keyword names. `sizes` adds to `lm` what its tensors tell, and the
three keys `hidden`, `depformer_hidden` (widths after gating) and `depformer_steps` (those in the file).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from model_repository.checkpoint.config import Section
from model_repository.errors import CheckpointError

SAMPLE_RATE = 24_000
"""Hz; Mimi's only rate."""

AGENT_CODEBOOKS = 8
"""Mimi codebooks in use (1 semantic + 7 acoustic), for the agent and again for the user."""

FRAME_SIZE = 1920
"""Samples per frame: 80 ms. Every checkpoint shares it, for the conversation's clock does."""

_MAX_COUNT = 1024
"""Of layers, depth steps, codebooks: far more than any model's, few enough to name all their tensors in memory."""

_MAX_CONTEXT = 1 << 20
"""Positions; more are a mistake: one conversation would take a terabyte."""

_DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)


def gated_hidden(feed_forward: int) -> int:
    """Width of a SiLU-gated feed-forward whose nominal width is `feed_forward`: two thirds of it, floored."""
    return 2 * feed_forward // 3


@dataclass(frozen=True)
class TransformerGeometry:
    """One decoder-only transformer.

    `hidden` is the width between the two feed-forward matrices (after gating, where there is gating). `context` is
    the reference's KV capacity C; it attends to at most C - 1 keys (`window`).
    """

    dim: int
    num_layers: int
    num_heads: int
    hidden: int
    context: int
    max_period: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def window(self) -> int:
        """Keys a query may attend to, itself included: the reference masks the oldest of its C ring slots."""
        return self.context - 1


@dataclass(frozen=True)
class LmGeometry:
    """The language model: temporal transformer, depth transformer, vocabularies and delays."""

    temporal: TransformerGeometry
    depformer: TransformerGeometry
    depformer_steps: int
    """Depth steps in the file (16, or 8); only the first `AGENT_CODEBOOKS` are used."""
    card: int
    """Audio vocabulary; id `card` is the initial token."""
    text_card: int
    """Text vocabulary; id `text_card` is the initial token."""
    text_padding_id: int
    delays: tuple[int, ...]
    """Delay in frames of each stream: text, 8 agent codebooks, 8 user codebooks."""

    @property
    def dim(self) -> int:
        """Width of the temporal transformer and of the summed input embeddings."""
        return self.temporal.dim

    @property
    def num_streams(self) -> int:
        return len(self.delays)


@dataclass(frozen=True)
class MimiGeometry:
    """The codec: SEANet, two transformers of the same geometry, a split residual quantizer."""

    dimension: int
    n_filters: int
    ratios: tuple[int, ...]
    """Strides in decoder order (largest first)."""
    kernel_size: int
    residual_kernel_size: int
    last_kernel_size: int
    compress: int
    transformer: TransformerGeometry
    codebook_dim: int
    codebook_size: int
    num_codebooks: int
    """Codebooks in the file (32 as published); `AGENT_CODEBOOKS` are used."""
    layer_scale: float = 0.01

    @property
    def hop(self) -> int:
        """Samples per SEANet latent step (960)."""
        return prod(self.ratios)

    @property
    def steps_per_frame(self) -> int:
        """Latent steps per codec frame: the learnt down- and upsampling halve and double the rate."""
        return 2

    @property
    def frame_size(self) -> int:
        """Samples per codec frame (1920 at 24 kHz: 80 ms)."""
        return self.hop * self.steps_per_frame


@dataclass(frozen=True)
class Geometry:
    """Everything about a checkpoint's size that a graph, a config or the gateway needs to know."""

    lm: LmGeometry
    mimi: MimiGeometry

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Geometry:
        """Geometry from a parsed `config.json`; absent sections and keys keep the published 7B's values.

        Raises `CheckpointError` for a value of the wrong type or one this implementation cannot serve.
        """
        lm = Section("lm", config)
        seanet = Section("seanet", config)
        quantizer = Section("quantizer", config)
        mimi_transformer = Section("mimi_transformer", config)
        for section in (lm, seanet, mimi_transformer):
            section.check_only_values()

        dim = lm.integer("dim", 4096)
        depformer_dim = lm.integer("depformer_dim", 1024)
        steps = lm.integer("dep_q", 16)
        temporal = TransformerGeometry(
            dim=dim,
            num_layers=lm.integer("num_layers", 32),
            num_heads=lm.integer("num_heads", 32),
            hidden=lm.integer("hidden", gated_hidden(int(lm.number("hidden_scale", 4.125) * dim))),
            context=lm.integer("context", 3000),
            max_period=lm.number("max_period", 10_000.0),
        )
        nominal = lm.integer("depformer_dim_feedforward", int(4.125 * depformer_dim))
        depformer = TransformerGeometry(
            dim=depformer_dim,
            num_layers=lm.integer("depformer_num_layers", 6),
            num_heads=lm.integer("depformer_num_heads", 16),
            hidden=lm.integer("depformer_hidden", gated_hidden(nominal)),
            context=steps,
        )
        delays = lm.integers("delays", _DELAYS)
        language_model = LmGeometry(
            temporal=temporal,
            depformer=depformer,
            depformer_steps=lm.integer("depformer_steps", steps),
            card=lm.integer("card", 2048),
            text_card=lm.integer("text_card", 32_000),
            text_padding_id=lm.integer("existing_text_padding_id", 3),
            delays=delays,
        )
        dimension = seanet.integer("dimension", 512)
        mimi = MimiGeometry(
            dimension=dimension,
            n_filters=seanet.integer("n_filters", 64),
            ratios=seanet.integers("ratios", (8, 6, 5, 4)),
            kernel_size=seanet.integer("kernel_size", 7),
            residual_kernel_size=seanet.integer("residual_kernel_size", 3),
            last_kernel_size=seanet.integer("last_kernel_size", 3),
            compress=seanet.integer("compress", 2),
            transformer=TransformerGeometry(
                dim=mimi_transformer.integer("d_model", 512),
                num_layers=mimi_transformer.integer("num_layers", 8),
                num_heads=mimi_transformer.integer("num_heads", 8),
                hidden=mimi_transformer.integer("dim_feedforward", 2048),
                context=mimi_transformer.integer("context", 250),
                max_period=mimi_transformer.number("max_period", 10_000.0),
            ),
            codebook_dim=quantizer.integer("dimension", 256),
            codebook_size=quantizer.integer("bins", 2048),
            num_codebooks=quantizer.integer("n_q", 32),
            layer_scale=mimi_transformer.number("layer_scale", 0.01),
        )
        geometry = cls(language_model, mimi)
        geometry._check(lm.integer("n_q", 16), steps)
        return geometry

    def _check(self, n_q: int, dep_q: int) -> None:
        lm, mimi = self.lm, self.mimi
        steps, padding, width = min(dep_q, lm.depformer_steps), lm.text_padding_id, mimi.transformer.dim
        _require(n_q == 2 * AGENT_CODEBOOKS, f"lm.n_q must be {2 * AGENT_CODEBOOKS}, got {n_q}")
        fits = steps >= AGENT_CODEBOOKS and max(dep_q, lm.depformer_steps) <= _MAX_COUNT
        _require(fits, f"lm.dep_q must be from {AGENT_CODEBOOKS} to {_MAX_COUNT}, got {steps}")
        fits = lm.num_streams == n_q + 1 and set(lm.delays) <= {0, 1}
        _require(fits, f"lm.delays must be {n_q + 1} values of 0 or 1, got {list(lm.delays)}")
        fits = AGENT_CODEBOOKS <= mimi.num_codebooks <= _MAX_COUNT
        _require(fits, f"quantizer.n_q must be from {AGENT_CODEBOOKS} to {_MAX_COUNT}, got {mimi.num_codebooks}")
        cards = f"lm.card ({lm.card}) and quantizer.bins ({mimi.codebook_size})"
        _require(lm.card == mimi.codebook_size, f"{cards} must be equal")
        _require(padding < lm.text_card, f"lm.existing_text_padding_id ({padding}) must be below lm.text_card")
        hop = FRAME_SIZE // mimi.steps_per_frame
        _require(mimi.hop == hop, f"seanet.ratios must multiply to {hop}, got {mimi.hop}")
        widths = f"mimi_transformer.d_model ({width}) must equal seanet.dimension ({mimi.dimension})"
        _require(width == mimi.dimension, f"{widths}: transformers with projections are not read")
        for name, transformer, positions in (
            ("lm", lm.temporal, 1),
            ("lm.depformer", lm.depformer, 1),
            ("mimi_transformer", mimi.transformer, mimi.steps_per_frame),
        ):
            # A window holds the positions of a frame.
            fits = positions <= transformer.window < _MAX_CONTEXT
            least, context = positions + 1, transformer.context
            _require(fits, f"{name}.context must be from {least} to {_MAX_CONTEXT}, got {context}")
            layers, heads = transformer.num_layers, transformer.num_heads
            _require(layers <= _MAX_COUNT, f"{name}: {layers} layers are more than {_MAX_COUNT}")
            fits = transformer.dim % heads == 0 and transformer.head_dim % 2 == 0
            _require(fits, f"{name}: width {transformer.dim} is not {heads} heads of an even width")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise CheckpointError(f"config.json: {message}")
