"""What the metadata of a GGUF of PersonaPlex say of its geometry, checked against its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from model_repository.checkpoint.geometry import gated_hidden
from model_repository.checkpoint.weights.gguf_file import Value
from model_repository.checkpoint.weights.sizes import tensor_sizes
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.errors import CheckpointError

ARCHITECTURE = "personaplex"

_SIZES = {
    "block_count": "num_layers",
    "embedding_length": "dim",
    "feed_forward_length": "hidden",
    "text_vocab_size": "text_card",
    "audio_vocab_size": "card",
    "depformer.block_count": "depformer_num_layers",
    "depformer.embedding_length": "depformer_dim",
    "depformer.feed_forward_length": "depformer_hidden",
}
"""Keys that tell what the tensors tell too."""

_STATED = {
    "attention.head_count": "num_heads",
    "depformer.attention.head_count": "depformer_num_heads",
    "rope.freq_base": "max_period",
}
"""Keys that tell what no tensor tells."""


def stated_sizes(metadata: Mapping[str, Value], tensors: TensorSource, label: str) -> dict[str, Value]:
    """Keys of the section `lm` of a `config.json`, from the metadata of the file that messages call `label`.

    Raises `CheckpointError` for a file of another architecture, or metadata that its tensors contradict.
    """
    architecture = metadata.get("general.architecture", ARCHITECTURE)
    if architecture != ARCHITECTURE:
        raise CheckpointError(f"{label}: general.architecture must be {ARCHITECTURE!r}, got {architecture!r}"[:300])
    sizes = tensor_sizes(tensors, label)
    for key, size in _SIZES.items():
        said = metadata.get(f"{ARCHITECTURE}.{key}")
        if said is not None and size in sizes and sizes[size] not in _meanings(key, said):
            message = f"its metadata say {ARCHITECTURE}.{key} = {said!r}, its tensors {sizes[size]}"
            raise CheckpointError(f"{label}: {message}"[:300])
    stated = {name: metadata.get(f"{ARCHITECTURE}.{key}") for key, name in _STATED.items()}
    return {name: value for name, value in stated.items() if value is not None}


def _meanings(key: str, said: Value) -> set[int]:
    """What a value may mean: a vocabulary with or without its initial token, a width before or after gating."""
    if not isinstance(said, int):
        return set()
    if key.endswith("vocab_size"):
        return {said, said - 1}
    if key.endswith("feed_forward_length"):
        return {said, gated_hidden(said)}
    return {said}
