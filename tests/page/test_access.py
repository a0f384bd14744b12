"""Accessibility: names, contrast, narrow screens, keyboard and screen reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.browser import Visit, visiting
from tests.page.conftest import Gateway, running

CONTROLS = {"button", "link", "radio", "combobox", "textbox", "spinbutton", "meter", "log", "DisclosureTriangle"}

# WCAG 2.2, 1.4.3: contrast of text with its background, where that is one colour.
CONTRASTS = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => colour.slice(0, 3)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.documentElement).getPropertyValue("--ground"));
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!words && !element.matches("input, select, textarea")) continue;
    if (!element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(rgba(style.color)), luminance(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 120)]);
  }
  return found;
}"""


def tree(page: Page) -> list[dict[str, Any]]:
    """Return the accessibility tree."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [node for node in nodes if not node["ignored"]]


def role(node: dict[str, Any]) -> str:
    return str(node["role"]["value"])


def name(node: dict[str, Any]) -> str:
    return str(node.get("name", {}).get("value", "")).strip()


@pytest.fixture(scope="module", params=["idle", "talking", "over"])
def opened(request: pytest.FixtureRequest, browser: Browser, tiny_models: Path) -> Iterator[Visit]:
    """The page in each state, with all options shown. All tests of a state share it."""
    with running(tiny_models) as gateway, visiting(browser, gateway.url) as visit:
        expect(visit.page.locator(".chip").first).to_be_visible()
        visit.page.get_by_text("More options").click()
        if request.param != "idle":
            visit.start()
            visit.transcript_grows()
        if request.param == "over":
            visit.end()
        yield visit


@pytest.fixture
def restored(opened: Visit) -> Iterator[Visit]:
    """`opened`; window size and colours are restored after each test."""
    size = opened.page.viewport_size
    assert size is not None
    state = opened.page.locator("body").get_attribute("data-state")
    yield opened
    assert opened.page.locator("body").get_attribute("data-state") == state
    opened.page.set_viewport_size(size)
    opened.page.emulate_media(color_scheme="null", reduced_motion="null")


def test_every_control_has_a_name(restored: Visit) -> None:
    controls = [node for node in tree(restored.page) if role(node) in CONTROLS]
    assert len(controls) > 3
    assert [node for node in controls if not name(node)] == []


def test_the_page_has_one_main_region_one_main_heading_and_a_language(restored: Visit) -> None:
    nodes = tree(restored.page)
    assert [role(node) for node in nodes].count("main") == 1
    assert any(role(node) == "heading" for node in nodes)
    assert restored.page.evaluate("document.documentElement.lang") == "en"


def test_ids_are_unique_and_references_resolve(restored: Visit) -> None:
    broken = restored.page.evaluate(
        """() => {
          const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
          const names = ["for", "aria-labelledby", "aria-describedby"];
          const used = names.flatMap((name) => [...document.querySelectorAll(`[${name}]`)].flatMap(
            (e) => e.getAttribute(name).split(" ")));
          return [ids.filter((id, i) => ids.indexOf(id) !== i), used.filter((id) => !ids.includes(id))];
        }"""
    )
    assert broken == [[], []]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(restored: Visit, scheme: Any) -> None:
    restored.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    restored.page.mouse.move(0, 0)
    contrasts = restored.page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [(ratio, html) for ratio, html in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_page_does_not_scroll_horizontally(restored: Visit, width: int) -> None:
    restored.page.set_viewport_size({"width": width, "height": 740})
    assert restored.page.evaluate("document.documentElement.scrollWidth") <= width


def test_touch_targets_are_large_enough(restored: Visit) -> None:
    """WCAG 2.2, 2.5.8: 24 by 24 pixels."""
    restored.page.set_viewport_size({"width": 360, "height": 740})
    small = restored.page.evaluate(
        """[...document.querySelectorAll("button, a, .chip, select, textarea, input:not([type=radio]), summary")]
          .filter((e) => e.checkVisibility()).map((e) => [e.getBoundingClientRect(), e.outerHTML.slice(0, 80)])
          .filter(([box]) => box.width < 24 || box.height < 24).map(([, html]) => html)"""
    )
    assert small == []


def test_a_call_can_be_made_with_the_keyboard(visit: Visit, gateway: Gateway) -> None:
    page, key = visit.page, visit.page.keyboard
    expect(page.locator(".chip").first).to_be_visible()

    def focused() -> str:
        return str(page.evaluate("document.activeElement.value || document.activeElement.id"))

    key.press("Tab")
    assert focused() == "NATF0"
    key.press("ArrowRight")
    assert focused() == "NATF1"
    assert visit.text("#voice-name") == "NATF1"
    outline = page.evaluate("getComputedStyle(document.querySelector('.chip input:focus-visible + span')).outlineStyle")
    assert outline == "solid"
    order = []
    for _ in range(4):
        key.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["role", "prompt", "SUMMARY", "start"]
    key.press("Enter")
    visit.in_state("talking")
    expect(page.locator("#mute")).to_be_focused()
    key.press("Space")
    expect(page.locator("#mute")).to_have_attribute("aria-pressed", "true")
    key.press("Tab")
    assert focused() == "end"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    key.press("Enter")
    expect(page.locator("#after")).to_be_visible()
    expect(page.locator("#call-title")).to_be_focused()
    while focused() != "again":
        key.press("Tab")
        assert focused() != "start"
    key.press("Enter")
    expect(page.locator("#start")).to_be_focused()


def test_state_changes_are_announced_to_screen_readers(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    gateway = gateway_with(slots=1)
    visit, other = visit_to(gateway.url), visit_to(gateway.url)
    visit.start()
    expect(visit.page.get_by_role("status").first).to_have_text("The call has started. You can talk at any time.")
    other.error()
    expect(other.page.get_by_role("alert")).to_contain_text("All calls are taken")
    # A screen reader does not read the transcript aloud, since the agent's voice is audible.
    expect(visit.page.get_by_role("log", name="Transcript")).to_have_attribute("aria-live", "off")
    visit.end()
    expect(visit.page.get_by_role("status").first).to_have_text("The call is over.")


def test_reduced_motion_stops_animations(visit: Visit) -> None:
    paints = """() => new Promise((resolve) => {
      const pen = document.getElementById("ribbon").getContext("2d"), clear = pen.clearRect;
      let count = 0;
      pen.clearRect = function (...box) { count += 1; return clear.apply(this, box); };
      setTimeout(() => resolve(count), 1500);
    })"""
    visit.page.emulate_media(reduced_motion="no-preference")
    visit.start()
    visit.transcript_grows()
    assert visit.page.evaluate(paints) > 3
    visit.page.emulate_media(reduced_motion="reduce")
    assert visit.page.evaluate("document.getAnimations().length") == 0
    assert visit.page.evaluate(paints) <= 3
    visit.end()
