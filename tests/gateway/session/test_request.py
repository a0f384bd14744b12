"""Sampling parameters of a request, by the limits of the repository."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import InvalidRequest
from gateway.manifest import Manifest
from gateway.session.params import PersonaParams
from gateway.session.request import sampling_params
from tests.gateway.conftest import default_manifest


def runtime(**changes: int) -> Any:
    return SimpleNamespace(manifest=Manifest.model_validate(default_manifest() | changes))


@pytest.mark.parametrize("top_k", [0, 257, 1_000_000])
def test_text_top_k_keeps_to_what_the_models_sort(top_k: int):
    with pytest.raises(InvalidRequest, match=r"text_top_k must be in 1\.\.256 on this server") as refusal:
        sampling_params(PersonaParams(text_top_k=top_k), runtime(max_text_top_k=256))
    assert refusal.value.field == "text_top_k"


@pytest.mark.parametrize(("limit", "top_k", "expected"), [(256, 256, 256), (256, 1, 1), (400, 0, 0), (400, 500, 400)])
def test_text_top_k_is_free_where_the_limit_is_the_vocabulary(limit: int, top_k: int, expected: int):
    assert sampling_params(PersonaParams(text_top_k=top_k), runtime(max_text_top_k=limit)).text_top_k == expected
