"""On a CPU, too, slots that do not fit are refused when a model is loaded, with the number that would."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx
import pytest

from model_repository.serving import host
from model_repository.serving.execution_target import open_session
from model_repository.serving.host import HostMemory
from model_repository.serving.memory import HOST_WORKSPACE_BYTES, WORKSPACE_SHARE, MemoryEstimate, MemoryShortageError
from tests.conftest import GoldenVariant


def machine(monkeypatch: pytest.MonkeyPatch, folder: Path, total: int, free: int) -> None:
    """A machine with so many bytes, without control groups."""
    info = folder / "meminfo"
    info.write_text(f"MemTotal: {total // 1024} kB\nMemFree: 0 kB\nMemAvailable: {free // 1024} kB\n")
    monkeypatch.setattr(host, "_MEMORY_INFO", info)
    monkeypatch.setattr(host, "_CONTROL_GROUP", folder / "none")


def temporal(models: Path) -> Path:
    return models / "triton" / "temporal" / "1" / "model.onnx"


def test_slots_that_do_not_fit_are_refused_with_the_number_that_would(
    golden_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = MemoryEstimate.of(temporal(golden_models), on_cpu=True)
    free = needs.total(0) + 5 * needs.slot + 2048
    machine(monkeypatch, tmp_path, 1 << 40, free)
    open_session(temporal(golden_models), 5, None)
    with pytest.raises(MemoryShortageError, match=r"temporal: 6 slots need .* GB of memory .*; build with --slots 5$"):
        open_session(temporal(golden_models), 6, None)
    machine(monkeypatch, tmp_path, 1 << 28, 1 << 40)
    with pytest.raises(
        MemoryShortageError, match=r"the 4 models together: 6 slots need .* and the machine has 0\.3: not even"
    ):
        open_session(temporal(golden_models), 6, None)


def test_half_precision_matrices_are_counted_as_the_session_holds_them(golden_variant: GoldenVariant) -> None:
    model = temporal(golden_variant("fp16"))
    stored = model.with_name("model.onnx.data").stat().st_size
    widened = MemoryEstimate.of(model, on_cpu=True).weights
    assert MemoryEstimate.of(model).weights == stored
    tensors = [
        tensor for tensor in onnx.load(model, load_external_data=False).graph.initializer if tensor.name.endswith(".T")
    ]
    assert {tensor.data_type for tensor in tensors} == {onnx.TensorProto.FLOAT16}
    assert widened - stored == sum(4 * prod(tensor.dims) for tensor in tensors)
    assert MemoryEstimate.of(model, on_cpu=True).workspace == HOST_WORKSPACE_BYTES + round(WORKSPACE_SHARE * widened)


def test_a_container_has_what_its_control_group_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, tmp_path, 64 << 30, 32 << 30)
    assert (HostMemory().total(), HostMemory().free()) == (64 << 30, 32 << 30)
    group = tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(host, "_CONTROL_GROUP", group)
    (group / "memory.max").write_text("max\n")
    assert HostMemory().total() == 64 << 30
    (group / "memory.max").write_text(f"{8 << 30}\n")
    (group / "memory.current").write_text(f"{3 << 30}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {1 << 30}\nactive_file 7\n")
    assert (HostMemory().total(), HostMemory().free()) == (8 << 30, 6 << 30)
