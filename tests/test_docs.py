"""README and docs: links lead somewhere, and every target, command, setting and metric that they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.cli import app
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# Read by model processes, by the command line and by `livekit-plugins-nvidia`.
OTHER_VARIABLES = {
    "PERSONAPLEX_API_KEY",
    "PERSONAPLEX_CPU_KERNELS",
    "PERSONAPLEX_INTRA_OP_THREADS",
    "PERSONAPLEX_TRITON_URL",
    "PERSONAPLEX_URL",
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pages
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|^ {4}|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
    assert named <= targets


@pages
def test_commands_exist(page: Path) -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups}
    named = set(re.findall(r"(?:^|^ {4}|`|bin/)personaplex ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named <= commands


@pages
def test_settings_exist(page: Path) -> None:
    settings = {f"PERSONAPLEX_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    assert set(re.findall(r"PERSONAPLEX_[A-Z_]*[A-Z]", page.read_text())) <= settings


@pages
def test_metrics_exist(page: Path) -> None:
    exposed = Metrics(1).text().decode()
    for name in re.findall(r"`(personaplex_[a-z_]+)", page.read_text()):
        assert f"\n{name}" in exposed or f"# TYPE {name.removesuffix('_total')}" in exposed, name
