"""The generated code in the repository matches the .proto."""

from __future__ import annotations

import pytest

from gateway.api.grpc.generate import GENERATED, ROOT, generate


def test_the_generated_code_is_up_to_date(tmp_path):
    pytest.importorskip("grpc_tools")
    generate(tmp_path)
    for path in GENERATED:
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), (
            f"{path} is not what `python -m gateway.api.grpc.generate` makes"
        )
