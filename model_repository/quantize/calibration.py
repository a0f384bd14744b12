"""Calibration: the temporal transformer's layers run once, in float32, over columns as conversations have them.

The columns are voices of the checkpoint, one of each family, each followed by the text of a prompt, and then by the
same text spoken: each token followed by padding, over random codes of the agent and the user. Without spoken columns
keys and values of a conversation were up to 1.9 times as large as any in calibration; with them up to 1.3 times (both
with outlier weights; 1.8 and 1.1 times with the trained small model). One layer is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import numpy as np
import sentencepiece

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.errors import CheckpointError
from model_repository.prompt_codes import SILENCE, SINE
from model_repository.quantize.blocks import Float32
from model_repository.quantize.smoothing_scales import floored

VOICES = 4
"""As many as the published model has families: NATF, NATM, VARF, VARM."""

TEXTS = (
    "<system> You are a helpful assistant. Answer questions clearly, keep it short, say when you are unsure. <system>",
    "<system> You work in customer service for a bank. Your name is Maria. Be polite, offer the next step. <system>",
    "<system> You are a wise and friendly teacher. Give advice in a clear and engaging way, with examples. <system>",
    "<system> You enjoy having a good conversation about music, travel, food and the weather in the hills. <system>",
)
"""Prompts after the voices, in the form in which they are fed."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Mean squares of each channel of what a layer's four matrices are multiplied with, and of keys and values.

    attention_in, gating_in: [dim], norms' outputs; attended: [dim], heads' outputs; gated: [hidden]; key: [dim / 2],
    of rotated pairs; value: [dim]. `key_peak` is the largest length of a pair over its root mean square, `value_peaks`
    [dim] are the largest magnitudes.
    """

    attention_in: Float32
    attended: Float32
    gating_in: Float32
    gated: Float32
    key: Float32
    value: Float32
    key_peak: float
    value_peaks: Float32


def calibrate(checkpoint: Checkpoint) -> Iterator[LayerStatistics]:
    """Statistics of the temporal transformer's layers, one after the other, each when it is asked for.

    Raises `CheckpointError` for a tokenizer that is not one, or has more pieces than the model.
    """
    lm = checkpoint.geometry.lm
    sequences = [
        np.concatenate([checkpoint.voice(name).embeddings, embedded])
        for name, embedded in zip(calibration_voices(list(checkpoint.voices)), _texts(checkpoint), strict=False)
    ]
    return layer_statistics(lm.temporal, checkpoint.lm, sequences)


def layer_statistics(
    shape: TransformerGeometry, source: TensorSource, sequences: Sequence[Float32]
) -> Iterator[LayerStatistics]:
    """Statistics over `sequences` of embedded columns, [S, dim] each."""
    x = np.concatenate(sequences)
    lengths = [len(sequence) for sequence in sequences]
    for index in range(shape.num_layers):
        layer = f"transformer.layers.{index}"
        normed = _rms_norm(x, source.read(f"{layer}.norm1.alpha"))
        query, key, value = np.split(normed @ source.read(f"{layer}.self_attn.in_proj_weight").T, 3, axis=1)
        attended = np.concatenate(
            [
                _attention(query[start:end], key[start:end], value[start:end], shape)
                for start, end in pairwise([0, *np.cumsum(lengths)])
            ]
        )
        x += attended @ source.read(f"{layer}.self_attn.out_proj.weight").T
        gating_in = _rms_norm(x, source.read(f"{layer}.norm2.alpha"))
        gate, up = np.split(gating_in @ source.read(f"{layer}.gating.linear_in.weight").T, 2, axis=1)
        gated = gate / (1 + np.exp(-gate)) * up
        x += gated @ source.read(f"{layer}.gating.linear_out.weight").T
        pairs = np.square(key).reshape(len(key), -1, 2).mean(-1)
        pair_power, value_power = _power(np.sqrt(pairs)), _power(value)
        yield LayerStatistics(
            attention_in=_power(normed),
            attended=_power(attended),
            gating_in=_power(gating_in),
            gated=_power(gated),
            key=pair_power,
            value=value_power,
            # A rotation moves a pair's whole length into one of the two.
            key_peak=float(np.sqrt((2 * pairs / pair_power).max())),
            value_peaks=np.abs(value).max(axis=0),
        )


def calibration_voices(names: Sequence[str]) -> list[str]:
    """Choose `VOICES` of the names, from as many families as there are. A family is a name without its number."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.rstrip("0123456789"), []).append(name)
    in_turn = [name for turn in zip_longest(*families.values()) for name in turn if name is not None]
    return in_turn[:VOICES]


def _texts(checkpoint: Checkpoint) -> list[Float32]:
    """Embedded columns [S, dim] for each of `TEXTS`: the prompt over the constant codes with which it is fed, and the
    text spoken.
    """
    lm, tokenizer = checkpoint.geometry.lm, _tokenizer(checkpoint)
    constant, generator = np.array([*SILENCE, *SINE]) % lm.card, np.random.default_rng(0)
    columns = []
    for text in TEXTS:
        tokens = np.array(tokenizer.encode(text))
        prompt = np.column_stack([tokens, np.tile(constant, (len(tokens), 1))])
        codes = generator.integers(0, lm.card, (2 * len(tokens), len(constant)))
        spoken = np.column_stack([np.repeat(tokens, 2), codes])
        spoken[1::2, 0] = lm.text_padding_id
        columns.append(np.concatenate([prompt, spoken]))
    streams = np.concatenate(columns).T
    tables = ["text_emb.weight", *(f"emb.{stream}.weight" for stream in range(len(constant)))]
    embedded = sum(checkpoint.lm.read(table)[tokens] for table, tokens in zip(tables, streams, strict=True))
    return np.split(np.asarray(embedded), np.cumsum([len(part) for part in columns])[:-1])


def _tokenizer(checkpoint: Checkpoint) -> sentencepiece.SentencePieceProcessor:
    text_card = checkpoint.geometry.lm.text_card
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint.tokenizer))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{checkpoint.tokenizer}: not a SentencePiece model") from error
    if (pieces := tokenizer.get_piece_size()) > text_card:
        raise CheckpointError(f"{checkpoint.tokenizer}: {pieces} pieces, but the model has {text_card} text tokens")
    return tokenizer


def _power(x: Float32) -> Float32:
    """Mean square of each channel of x [S, n], kept above nothing."""
    return floored(np.square(x).mean(axis=0))


def _rms_norm(x: Float32, alpha: Float32) -> Float32:
    normed: Float32 = x * (alpha.reshape(-1) / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8))
    return normed


def _attention(query: Float32, key: Float32, value: Float32, shape: TransformerGeometry) -> Float32:
    """Causal self-attention with rotary positions from 0: [S, dim] each -> [S, dim]."""
    length = len(query)
    half = shape.head_dim // 2
    frequencies = np.exp(np.arange(half) * (-np.log(shape.max_period) * 2 / shape.head_dim))
    turn = np.exp(1j * np.arange(length)[:, None] * frequencies).astype(np.complex64)

    def heads(x: Float32) -> Float32:
        return x.reshape(length, shape.num_heads, shape.head_dim).transpose(1, 0, 2)

    def rotated(x: Float32) -> Float32:
        pairs = np.ascontiguousarray(heads(x)).view(np.complex64)
        turned: Float32 = (pairs * turn).view(np.float32)
        return turned

    scores = rotated(query) @ rotated(key).transpose(0, 2, 1) * np.float32(shape.head_dim**-0.5)
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended: Float32 = (weights @ heads(value)).transpose(1, 0, 2).reshape(length, -1)
    return attended
