"""Fixtures of every package: the golden checkpoint with the reference's outputs, and repositories built from it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path

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

hypothesis.settings.register_profile("short", max_examples=25, deadline=None)
hypothesis.settings.register_profile("long", max_examples=100, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run what has a long form, in its long form, and nothing else")


def pytest_configure(config: pytest.Config) -> None:
    long = config.getoption("--long")
    os.environ[VARIABLE] = "1" if long else "0"
    hypothesis.settings.load_profile("long" if long else "short")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Select the short or the long form of the tests, and put the longest first."""
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
def golden_models(built_once: BuiltOnce) -> Path:
    """The golden checkpoint, built for 8 conversations."""
    from model_repository.build import build_repository

    return (
        built_once("golden", lambda path: build_repository(GOLDEN / "checkpoint", path / "models", slots=8)) / "models"
    )


@pytest.fixture(scope="session")
def cuda_models(built_once: BuiltOnce) -> Path:
    """The golden checkpoint, built for CUDA at 16 bits."""
    from model_repository.build import build_repository

    def build(path: Path) -> None:
        build_repository(GOLDEN / "checkpoint", path / "models", slots=8, variant="fp16", device="cuda")

    return built_once("cuda", build) / "models"


@pytest.fixture(scope="session")
def tiny_models(built_once: BuiltOnce) -> Path:
    """The embedded default, built for 8 conversations."""
    from model_repository.build import build_repository
    from model_repository.tiny import write_tiny_checkpoint

    def build(path: Path) -> None:
        write_tiny_checkpoint(path / "checkpoint")
        build_repository(path / "checkpoint", path / "models", slots=8)

    return built_once("tiny", build) / "models"
