"""Chromium, driven by Playwright, and operations of a user of the page."""

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

# The shell has no windows and takes half the CPU time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SPEECH = Path(__file__).parents[1] / "data" / "question.wav"

ALLOWED = ("--use-fake-ui-for-media-stream",)
"""The permission prompt for the microphone is accepted."""
DENIED = ("--use-fake-ui-for-media-stream=deny",)
FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={SPEECH}")

# Generous: the tests do not measure speed.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


def executable(playwright: Playwright) -> str:
    """Return the path of the browser. Fails the test if there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    if not Path(found).exists():
        pytest.fail(f"no browser: none of {', '.join(NAMES)} is on the PATH (.ci/chromium installs one)")
    return found


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """Start a browser with `flags`. All its processes have ended when the context exits."""
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
    """A user with the page open."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        page.goto(url)

    def _console(self, message: ConsoleMessage) -> None:
        # A rejected request is a response of the server, not an error of the page.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def in_state(self, state: str) -> None:
        """Wait for a state: idle, talking, over."""
        expect(self.page.locator("body")).to_have_attribute("data-state", state)

    def start(self) -> None:
        """Start a call and wait until it is established."""
        expect(self.page.locator(".chip").first).to_be_visible()
        self.page.click("#start")
        self.in_state("talking")

    def error(self) -> str:
        """Try to start a call; return the error message."""
        expect(self.page.locator(".chip").first).to_be_visible()
        self.page.click("#start")
        expect(self.page.locator("#alert")).to_be_visible()
        self.in_state("idle")
        return self.text("#alert")

    def transcript_grows(self) -> None:
        """Wait until the transcript is longer than now."""
        now = len(self.text("#lines"))
        self.wait_until(lambda: len(self.text("#lines")) > now)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll: Playwright's `wait_for_function` evaluates text in the page, which the page's policy forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not condition():
            assert time.monotonic() < deadline, "the condition did not become true"
            self.page.wait_for_timeout(50)

    def end(self) -> None:
        """End the call and wait for the downloads."""
        self.page.click("#end")
        expect(self.page.locator("#after")).to_be_visible()

    def recording(self) -> NDArray[np.float32]:
        """Download the recording: [frames, 2] at 24 kHz."""
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
    """Open the page in a separate window. Fails if the page logged an error."""
    context = browser.new_context(permissions=list(permissions), **options)
    try:
        visit = Visit(context.new_page(), url)
        yield visit
        assert visit.errors == []
    finally:
        context.close()
