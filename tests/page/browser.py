"""Debian's Chromium, driven by Playwright, and the page as a person at it sees and uses it."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
from numpy.typing import NDArray
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SPEECH = Path(__file__).parents[1] / "data" / "question.wav"

ALLOWED = ("--use-fake-ui-for-media-stream",)
"""Whoever sits at the page says yes to the microphone."""
DENIED = ("--deny-permission-prompts",)
FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={SPEECH}")

# Machines that run tests are slow at times; nothing here is about speed.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


def executable(playwright: Playwright) -> str:
    """The browser's path; fails the test where there is none, for a page that no browser has seen is not tested."""
    found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    if not Path(found).exists():
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is on the PATH (.ci/chromium installs one)")
    return found


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser with `flags`; when the context ends, so have all its processes."""
    before = set(psutil.Process().children(recursive=True))
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *flags]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(playwright), args=arguments)
        try:
            yield browser
        finally:
            browser.close()
    left = [child for child in set(psutil.Process().children(recursive=True)) - before if child.is_running()]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive, f"the browser left processes behind: {alive}"


class Visit:
    """Someone at the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._console)
        page.goto(url)

    def _console(self, message: ConsoleMessage) -> None:
        # A refused request is the server's answer, not the page's mistake.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def in_state(self, state: str) -> None:
        """Wait until the page is: idle, talking, over."""
        expect(self.page.locator("body")).to_have_attribute("data-state", state)

    def start(self) -> None:
        """Start a call, and wait until it is one."""
        expect(self.page.locator(".chip").first).to_be_visible()
        self.page.click("#start")
        self.in_state("talking")

    def refused(self) -> str:
        """Try to start a call; what the page says instead."""
        expect(self.page.locator(".chip").first).to_be_visible()
        self.page.click("#start")
        expect(self.page.locator("#alert")).to_be_visible()
        self.in_state("idle")
        return self.text("#alert")

    def transcript_grows(self) -> None:
        """Wait until it is longer than it is now."""
        now = len(self.text("#lines"))
        self.wait_until(lambda: len(self.text("#lines")) > now)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Playwright's own way of waiting evaluates text in the page, which the page's policy forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            self.page.wait_for_timeout(50)

    def end(self) -> None:
        """Hang up, and wait for what is left of the call."""
        self.page.click("#end")
        expect(self.page.locator("#after")).to_be_visible()

    def recording(self) -> NDArray[np.float32]:
        """Download it: [frames, 2] at 24 kHz."""
        with self.page.expect_download() as download:
            self.page.click("#download")
        assert download.value.suggested_filename.endswith(".wav")
        with soundfile.SoundFile(io.BytesIO(Path(download.value.path()).read_bytes())) as file:
            assert (file.format, file.subtype, file.samplerate, file.channels) == ("WAV", "PCM_16", 24000, 2)
            pcm: NDArray[np.float32] = file.read(dtype="float32")
        return pcm


@contextmanager
def visiting(
    browser: Browser, url: str, permissions: Sequence[str] = ("microphone",), **options: Any
) -> Iterator[Visit]:
    """Open the page in a window of its own; it must not have complained by the end."""
    context = browser.new_context(permissions=list(permissions), **options)
    try:
        visit = Visit(context.new_page(), url)
        yield visit
        assert visit.complaints == []
    finally:
        context.close()
