"""PersonaPlex's language model in PyTorch, for training: whole dialogues at once, with the published parameter names.

Only the eight depth steps of the agent's codebooks are trained: the user's audio is always given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry, TransformerGeometry
from model_repository.synthetic.speaking.training import attend, rotate, rotations

_EPSILON = 1e-8

DROPOUT = 0.1
"""In the temporal transformer."""


class RmsNorm(nn.Module):
    """Root mean square norm, as the checkpoint has it: `alpha` [1, 1, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.alpha * torch.rsqrt(_EPSILON + x.square().mean(-1, keepdim=True)))


class Gating(nn.Module):
    """linear_out(silu(g) * u) with [g | u] = linear_in(x)."""

    def __init__(self, geometry: TransformerGeometry) -> None:
        super().__init__()
        self.linear_in = nn.Linear(geometry.dim, 2 * geometry.hidden, bias=False)
        self.linear_out = nn.Linear(geometry.hidden, geometry.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.linear_in(x).chunk(2, -1)
        return self.linear_out(functional.silu(gate) * up)


class Attention(nn.Module):
    """Self-attention whose projections are packed for `steps` depth steps; 1 in the temporal transformer."""

    def __init__(self, geometry: TransformerGeometry, steps: int = 1) -> None:
        super().__init__()
        dim = geometry.dim
        self.in_proj_weight = nn.Parameter(torch.randn(steps * 3 * dim, dim) * dim**-0.5)
        self.out_proj = nn.Linear(dim, steps * dim, bias=False)


def _heads(x: Tensor, geometry: TransformerGeometry) -> Tensor:
    return x.unflatten(-1, (geometry.num_heads, geometry.head_dim)).transpose(-2, -3)


class TemporalLayer(nn.Module):
    """One layer of the temporal transformer."""

    def __init__(self, geometry: TransformerGeometry) -> None:
        super().__init__()
        self._geometry = geometry
        self.self_attn = Attention(geometry)
        self.norm1, self.norm2 = RmsNorm(geometry.dim), RmsNorm(geometry.dim)
        self.gating = Gating(geometry)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        """x [N, S, dim], rotary [N, 1, S, head_dim / 2]."""
        geometry = self._geometry
        projected = functional.linear(self.norm1(x), self.self_attn.in_proj_weight)
        query, key, value = (_heads(part, geometry) for part in projected.chunk(3, -1))
        query, key = (rotate(part, rotary) for part in (query, key))
        mixed = attend(query, key, value, is_causal=True)
        x = x + self._dropped(self.self_attn.out_proj(mixed.transpose(1, 2).flatten(2)))
        return x + self._dropped(self.gating(self.norm2(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, DROPOUT, self.training)


class DepthLayer(nn.Module):
    """One layer of the depth transformer: norms are shared by its steps, all else is each step's own."""

    def __init__(self, geometry: TransformerGeometry, steps: int) -> None:
        super().__init__()
        self._geometry, self._steps = geometry, steps
        self.self_attn = Attention(geometry, steps)
        self.norm1, self.norm2 = RmsNorm(geometry.dim), RmsNorm(geometry.dim)
        self.gating = nn.ModuleList(Gating(geometry) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        """x [steps, M, dim] -> the same."""
        geometry, steps = self._geometry, self._steps
        into = self.self_attn.in_proj_weight.unflatten(0, (steps, -1))
        out = self.self_attn.out_proj.weight.unflatten(0, (steps, -1))
        projected = torch.bmm(self.norm1(x), into.transpose(1, 2))
        query, key, value = (_heads(part.transpose(0, 1), geometry) for part in projected.chunk(3, -1))
        mixed = attend(query, key, value, is_causal=True)
        merged = mixed.transpose(1, 2).flatten(2).transpose(0, 1)
        x = x + torch.bmm(merged, out.transpose(1, 2))
        normed = self.norm2(x)
        weights_in = torch.stack([gating.linear_in.weight for gating in self.gating])
        weights_out = torch.stack([gating.linear_out.weight for gating in self.gating])
        gate, up = torch.bmm(normed, weights_in.transpose(1, 2)).chunk(2, -1)
        return x + torch.bmm(functional.silu(gate) * up, weights_out.transpose(1, 2))


class OfCentroids(nn.Module):
    """An embedding table [card + 1, dim], linear in the centroids of the codes: near codes sound alike."""

    features: Tensor

    def __init__(self, centroids: Tensor) -> None:
        super().__init__()
        card, width = centroids.shape
        features = torch.zeros(card + 1, width + 1)
        features[:card, :width] = (centroids - centroids.mean(0)) / centroids.std()
        # The token before the first code is none of them.
        features[card, width] = 1.0
        self.register_buffer("features", features)

    def forward(self, projection: Tensor) -> Tensor:
        """[D + 1, dim] -> the table."""
        return self.features @ projection

    def right_inverse(self, table: Tensor) -> Tensor:
        """The projection whose table is nearest to the one given."""
        return torch.linalg.lstsq(self.features, table).solution


class LanguageModel(nn.Module):
    """Temporal transformer over columns of 17 tokens, depth transformer over the agent's codebooks."""

    def __init__(self, geometry: LmGeometry) -> None:
        super().__init__()
        temporal, depth = geometry.temporal, geometry.depformer
        self.geometry = geometry
        streams = geometry.num_streams - 1

        def table(rows: int, dim: int, deviation: float) -> nn.Embedding:
            embedding = nn.Embedding(rows, dim)
            nn.init.normal_(embedding.weight, std=deviation)
            return embedding

        self.emb = nn.ModuleList(table(geometry.card + 1, temporal.dim, 0.25) for _ in range(streams))
        # Of the user it hears codebook 0 alone, which was trained to tell the words. With the others it learns the
        # few speakers by heart.
        for embedding in self.emb[AGENT_CODEBOOKS + 1 :]:
            nn.init.zeros_(embedding.weight)
            embedding.requires_grad_(False)
        self.text_emb = table(geometry.text_card + 1, temporal.dim, 0.5)
        self.transformer = nn.ModuleDict(
            {"layers": nn.ModuleList(TemporalLayer(temporal) for _ in range(temporal.num_layers))}
        )
        self.out_norm = RmsNorm(temporal.dim)
        self.text_linear = nn.Linear(temporal.dim, geometry.text_card, bias=False)
        steps = AGENT_CODEBOOKS
        self.depformer_in = nn.ModuleList(nn.Linear(temporal.dim, depth.dim, bias=False) for _ in range(steps))
        self.depformer_text_emb = table(geometry.text_card + 1, depth.dim, 0.5)
        self.depformer_emb = nn.ModuleList(table(geometry.card + 1, depth.dim, 0.5) for _ in range(steps - 1))
        self.depformer = nn.ModuleDict(
            {"layers": nn.ModuleList(DepthLayer(depth, steps) for _ in range(depth.num_layers))}
        )
        self.linears = nn.ModuleList(nn.Linear(depth.dim, geometry.card, bias=False) for _ in range(steps))

    def hear_centroids(self, centroids: Tensor) -> None:
        """Make the embedding of the user's codebook 0 linear in its centroids [card, D]."""
        parametrize.register_parametrization(self.emb[AGENT_CODEBOOKS], "weight", OfCentroids(centroids))

    def fix_embeddings(self) -> None:
        """Make that embedding a table again, with the published name."""
        parametrize.remove_parametrizations(self.emb[AGENT_CODEBOOKS], "weight")

    def hidden(self, columns: Tensor, positions: Tensor) -> Tensor:
        """Columns [N, S, 17] at positions [N, S] -> hidden states [N, S, dim], after the final norm."""
        x = self.text_emb(columns[..., 0])
        for stream, embedding in enumerate(self.emb):
            x = x + embedding(columns[..., stream + 1])
        temporal = self.geometry.temporal
        rotary = rotations(positions, temporal.head_dim, temporal.max_period)[:, None]
        for layer in self.transformer["layers"]:
            x = layer(x, rotary)
        return self.out_norm(x)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[..., dim] -> [..., text_card], for the next column."""
        return self.text_linear(hidden)

    def audio_logits(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Hidden states [M, dim] and the text and agent tokens of the next columns [M, 9] -> [8, M, card]."""
        entries = [linear(hidden) for linear in self.depformer_in]
        embedded = [self.depformer_text_emb(following[:, 0])]
        embedded += [table(following[:, step + 1]) for step, table in enumerate(self.depformer_emb)]
        x = torch.stack([entry + embedding for entry, embedding in zip(entries, embedded, strict=True)])
        for layer in self.depformer["layers"]:
            x = layer(x)
        return torch.stack([linear(part) for linear, part in zip(self.linears, x, strict=True)])
