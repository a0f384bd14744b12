"""Every variant of the golden checkpoint, past the end of its ring, beside the reference's hidden states."""

from __future__ import annotations

import json

import numpy as np
import pytest

from model_repository.variants import VARIANTS
from tests.conftest import GoldenVariant
from tests.model_repository.serving.conftest import Models, one, sampler

LEAST_COSINE = {
    ("fp32", "fp32"): 0.999999,
    ("fp32", "fp16"): 0.99999,
    ("fp32", "int8"): 0.999,
    ("fp16", "fp16"): 0.99999,
    ("int8", "int8"): 0.995,
    ("int4", "int8"): 0.9,
    ("mixed", "int8"): 0.995,
}
"""Of a model 64 wide with random weights, where rounding shows more than in a large one."""

LONG = ("mixed",)
"""Variants that are made of parts of the others."""

TABLES = ("emb.", "text_emb.", "depformer_emb.", "depformer_text_emb.")
"""How the names of embedding tables begin."""


@pytest.mark.parametrize(
    ("variant", "kv"),
    [pytest.param(*both, marks=[pytest.mark.long] if both[0] in LONG else []) for both in LEAST_COSINE],
)
def test_hidden_states_stay_close_through_prefill_and_wrap(golden, golden_variant: GoldenVariant, variant, kv):
    models = Models(golden_variant(variant, kv), slots=2)
    columns, hidden = golden["model_input"], golden["hidden"]
    cosines = []
    position = 0
    for chunk in (columns[:30], *(columns[step : step + 1] for step in range(30, len(columns)))):
        start, position = position == 0, position + len(chunk)
        answer = one(models.temporal, 1, {"columns": chunk, **sampler(position)}, start=start)
        mine, theirs = answer["hidden"], hidden[position - 1]
        cosines.append(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
    assert len(cosines) > models.window
    assert np.mean(cosines) > LEAST_COSINE[variant, kv]

    codes = one(models.depformer, 0, {"hidden": hidden[80], "text_token": columns[81, :1], **sampler(81)})["codes"]
    assert codes.shape == (8,)


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in VARIANTS]
)
def test_the_manifest_says_what_rounding_did(golden_variant: GoldenVariant, variant):
    manifest = json.loads((golden_variant(variant) / "manifest.json").read_text())
    assert manifest["variant"] == variant
    assert manifest["kv"] == VARIANTS[variant].cache
    bits = {"fp32": None, "fp16": 16, "int8": 8, "int4": 4}
    for model, precision in (("temporal", VARIANTS[variant].temporal), ("depformer", VARIANTS[variant].depformer)):
        errors = manifest["weights"][model]
        if precision == "fp32":
            assert errors == {}
            continue
        others = ("text_linear", "linears", *TABLES)
        assert {error["bits"] for name, error in errors.items() if not name.startswith(others)} == {bits[precision]}
        tables = {error["bits"] for name, error in errors.items() if name.startswith(TABLES)}
        assert tables == ({8} if precision == "int4" else {16})
        assert all(0 < error["mean"] <= error["largest"] and 0 < error["relative"] < 0.15 for error in errors.values())
    if variant == "int4":
        assert manifest["weights"]["temporal"]["text_linear.weight"]["bits"] == 8
    if variant != "fp32":
        assert {manifest["weights"]["depformer"][f"linears.{step}.weight"]["bits"] for step in range(8)} == {16}
