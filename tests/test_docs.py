"""README and docs: links lead somewhere, what they name exists, and the prose is plain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

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
LONGEST_SENTENCE = 30
"""Words."""
OTHER_WORDS = {
    "catalogue": "registry",
    "clip": "recording",
    "clips": "recordings",
    "cohort": "batch",
    "face": "API",
    "faces": "APIs",
    "knob": "setting",
    "room": "package, space",
    "rooms": "packages",
    "settle": "wait for",
    "shelf": "store",
    "tell": "send, report",
    "tells": "sends, reports",
    "tenant": "conversation",
    "tenants": "conversations",
    "thinks": "computes",
    "told": "sent, reported",
    "wish": "parameter",
    "wishes": "parameters",
}
"""Words that the field does not use, with those that it uses."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 150


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


def prose(page: Path) -> Iterator[str]:
    """The texts of paragraphs, list items, headings and table cells; inline code is one word."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "inline":
            kinds = {"code_inline": "CODE", "softbreak": " ", "hardbreak": " ", "image": "", "html_inline": " "}
            yield "".join(kinds.get(child.type, child.content) for child in token.children or ())


@pages
def test_words_are_those_of_the_field(page: Path) -> None:
    words = {word.lower() for text in prose(page) for word in re.findall(r"\w+", text)}
    assert {word: OTHER_WORDS[word] for word in words & OTHER_WORDS.keys()} == {}


@pages
def test_sentences_are_short(page: Path) -> None:
    sentences = [part for text in prose(page) for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9])", text)]
    long = [text for text in sentences if len(re.findall(r"[\w'’-]+", text)) > LONGEST_SENTENCE]
    assert not long
