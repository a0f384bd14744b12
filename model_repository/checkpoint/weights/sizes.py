"""The size of the language model as its tensors tell it: what a `config.json` need not say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.errors import CheckpointError

_PUBLISHED_WIDTHS = {"dim": ("num_heads", 4096), "depformer_dim": ("depformer_num_heads", 1024)}
"""For each width, the number of heads that no tensor tells, and the width at which it is known: the published one."""

_LAYER = re.compile(r"(transformer|depformer)\.layers\.(\d{1,6})\.")


def with_sizes(
    config: Mapping[str, Any], tensors: TensorSource, label: str, stated: Mapping[str, Any]
) -> dict[str, Any]:
    """`config` whose section `lm` says also what it left open and the names and shapes of `tensors` tell.

    `stated` are keys of that section that the weights' own file states; `config` goes before them.

    Raises `CheckpointError`, calling the file `label`, if layers are missing between others, or the number of
    attention heads is neither said nor known.
    """
    said = config.get("lm", {})
    if not isinstance(said, Mapping):
        return dict(config)
    said = {**stated, **said}
    sizes = tensor_sizes(tensors, label)
    if "hidden_scale" in said:
        sizes.pop("hidden", None)
    if "depformer_dim_feedforward" in said:
        sizes.pop("depformer_hidden", None)
    for width, (heads, published) in _PUBLISHED_WIDTHS.items():
        if heads not in said and sizes.get(width, published) != published:
            raise CheckpointError(
                f"{label}: its width ({width} = {sizes[width]}) is not the published {published}, "
                f"and no tensor tells the number of heads: config.json must say lm.{heads}"
            )
    return {**config, "lm": {**sizes, **said}}


def tensor_sizes(tensors: TensorSource, label: str) -> dict[str, int]:
    """Keys of `config.json`'s section `lm`, and three that it has not but `Geometry.from_config` reads."""
    sizes: dict[str, int] = {}

    def tell(name: str, **told: Any) -> None:
        """Adds what function of the shape each key is, if the tensor is there and a matrix."""
        if name in tensors and len(shape := tensors.shape(name)) == 2 and all(shape):
            sizes.update({key: value for key, size in told.items() if (value := size(*shape)) > 0})

    tell("emb.0.weight", card=lambda rows, _: rows - 1, dim=lambda _, columns: columns)
    tell("text_emb.weight", text_card=lambda rows, _: rows - 1)
    tell("depformer_in.0.weight", depformer_dim=lambda rows, _: rows)
    tell("transformer.layers.0.gating.linear_in.weight", hidden=lambda rows, _: rows // 2)
    tell("depformer.layers.0.gating.0.linear_in.weight", depformer_hidden=lambda rows, _: rows // 2)
    tell("depformer.layers.0.self_attn.in_proj_weight", depformer_steps=lambda rows, columns: rows // (3 * columns))
    for stack, key in (("transformer", "num_layers"), ("depformer", "depformer_num_layers")):
        layers = {int(match[2]) for name in tensors.names() if (match := _LAYER.match(name)) and match[1] == stack}
        if layers:
            absent = next(index for index in range(len(layers) + 1) if index not in layers)
            if absent < max(layers):
                raise CheckpointError(
                    f"{label}: missing tensors of layer '{stack}.layers.{absent}' (there is a layer {max(layers)})"
                )
            sizes[key] = len(layers)
    return sizes
