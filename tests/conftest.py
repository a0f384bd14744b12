"""Fixtures of every package: the golden checkpoint with the reference's outputs, and repositories built from it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.distribution import Scheduler, rank
from tests.effort import VARIABLE

# Several services may run at once, ours or those of tests beside us: none asks for the default port.
os.environ.setdefault("PERSONAPLEX_GRPC_PORT", "0")

GOLDEN = Path(__file__).parent / "golden"

BuiltOnce = Callable[[str, Callable[[Path], object]], Path]
GoldenVariant = Callable[..., Path]

# A busy machine is slow: no test fails by the time of its examples.
PATIENT: Any = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("short", max_examples=25, **PATIENT)
hypothesis.settings.register_profile("long", max_examples=100, **PATIENT)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run what has a long form, in its long form, and nothing else")


def pytest_configure(config: pytest.Config) -> None:
    long = config.getoption("--long")
    os.environ[VARIABLE] = "1" if long else "0"
    hypothesis.settings.load_profile("long" if long else "short")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the short or the long form of the tests, and put the longest first; Hypothesis has marked its own."""
    long = config.getoption("--long")
    wanted, others = [], []
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        chosen = bool(marks & {"long", "effort", "hypothesis"}) if long else "long" not in marks
        (wanted if chosen else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
    items[:] = sorted(wanted, key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduler:
    """Distribute the tests over the workers."""
    return Scheduler(config, log)


@pytest.fixture(scope="session", autouse=True)
def _parsed_operators() -> Iterator[None]:
    """Parse the schema of an ONNX operator once: onnxscript parses it at every node, a quarter of a small build."""
    from onnx_ir.schemas import OpSignature

    parse, parsed = OpSignature.from_op_schema, dict[tuple[str, str, int], OpSignature]()

    def once(schema: Any) -> OpSignature:
        key = (schema.domain, schema.name, schema.since_version)
        if key not in parsed:
            parsed[key] = parse(schema)
        return parsed[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpSignature, "from_op_schema", once)
        yield


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """Return the folder of a name; the first of all workers to ask for it fills it. Tests only read what is in it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        path = base / f"shared-{name}"
        with (base / f"shared-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / "complete").exists():
                path.mkdir()
                build(path)
                (path / "complete").touch()
        return path

    return folder


@pytest.fixture(scope="session")
def golden() -> Mapping[str, NDArray[np.generic]]:
    """The reference's outputs for the golden checkpoint, greedy, float32."""
    with np.load(GOLDEN / "golden.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def golden_variant(built_once: BuiltOnce) -> GoldenVariant:
    """Return a function of `variant`, `kv` and `device`: the golden checkpoint, built for 8 conversations."""
    from model_repository.build import build_repository
    from model_repository.variants import Device, variants_of

    def models(variant: str = "fp32", kv: str | None = None, device: str = "cpu") -> Path:
        kv = kv or variants_of(Device(device))[variant].cache

        def build(path: Path) -> None:
            build_repository(GOLDEN / "checkpoint", path / "models", slots=8, variant=variant, kv=kv, device=device)

        return built_once(f"golden-{variant}-{kv}-{device}", build) / "models"

    return models


@pytest.fixture(scope="session")
def golden_models(golden_variant: GoldenVariant) -> Path:
    """The golden checkpoint, built for 8 conversations."""
    return golden_variant()


@pytest.fixture(scope="session")
def cuda_models(golden_variant: GoldenVariant) -> Path:
    """The golden checkpoint, built for CUDA at 16 bits."""
    return golden_variant("fp16", device="cuda")


@pytest.fixture(scope="session")
def host_operators(built_once: BuiltOnce) -> Path:
    """Our operators for CUDA on a CPU, see tests/cuda/on_cpu.h."""
    pytest.importorskip("ziglang", reason="ziglang, the compiler, is not installed")
    source = Path(__file__).parents[1] / "model_repository" / "serving" / "native" / "int8_kv_attention.cu"

    def build(path: Path) -> None:
        caches = {f"ZIG_{which}_CACHE_DIR": str(path / "zig") for which in ("LOCAL", "GLOBAL")}
        compiler = [sys.executable, "-m", "ziglang", "cc", "-x", "c++", "-std=c++20", "-shared", "-fPIC"]
        # Each operation is rounded, as NumPy's are.
        flags = ["-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
        given = ["-include", Path(__file__).parent / "cuda" / "on_cpu.h", source]
        command = [*compiler, *flags, "-o", path / "operators.so", *given]
        subprocess.run(command, check=True, env={**os.environ, **caches})

    return built_once("host-operators", build) / "operators.so"


@pytest.fixture(scope="session")
def tiny_models(built_once: BuiltOnce) -> Path:
    """The embedded default, built for 8 conversations."""
    from model_repository.build import build_repository
    from model_repository.synthetic.tiny import write_tiny_checkpoint

    def build(path: Path) -> None:
        write_tiny_checkpoint(path / "checkpoint")
        build_repository(path / "checkpoint", path / "models", slots=8)

    return built_once("tiny", build) / "models"


@pytest.fixture(scope="session")
def speaking_models(built_once: BuiltOnce) -> Path:
    """The small speaking model, built for 8 conversations."""
    from model_repository.build import build_repository
    from model_repository.synthetic.speaking.export import write_speaking_checkpoint

    def build(path: Path) -> None:
        write_speaking_checkpoint(path / "checkpoint")
        build_repository(path / "checkpoint", path / "models", slots=8)

    return built_once("speaking", build) / "models"
