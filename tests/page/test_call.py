"""A call from the page, from the first click to the downloaded recording."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Route, expect

from tests.page.browser import Visit
from tests.page.conftest import Gateway

FRAME = 1920
RATE = 24000


def lag(left: NDArray[np.float32], right: NDArray[np.float32]) -> int:
    """Return the delay of `right` after `left` in samples: the maximum of the cross-correlation."""
    size = 2 * len(left)
    correlation = np.fft.irfft(np.fft.rfft(right, size) * np.conj(np.fft.rfft(left, size)), size)
    return int(np.argmax(correlation[: len(left)]))


def echoes(left: NDArray[np.float32], right: NDArray[np.float32]) -> list[int]:
    """Return the delay, up to 2 s, of each 80 ms of the last two seconds of `right`; silence has none.

    Per frame, since the delay changes where the machine stalls and playback has a gap.
    """
    found = []
    for start in range(len(right) - 2 * RATE, len(right) - FRAME + 1, FRAME):
        frame, before = right[start : start + FRAME], left[start - 2 * RATE : start + FRAME]
        if np.sqrt(np.mean(frame**2)) < 0.01:
            continue
        energy = np.convolve(before**2, np.ones(FRAME), "valid")
        likeness = np.correlate(before, frame, "valid") / np.sqrt(np.maximum(energy, 1e-3))
        found.append(2 * RATE - int(np.argmax(likeness)))
    return found


def test_a_call_shows_levels_text_and_statistics(visit: Visit) -> None:
    visit.start()
    visit.transcript_grows()
    visit.transcript_grows()
    for side in ("#level-you", "#level-agent"):
        meter = visit.page.locator(side)
        visit.wait_until(lambda meter=meter: int(meter.get_attribute("aria-valuenow")) > 5)
    for figure in ("#delay", "#server-delay"):
        expect(visit.page.locator(figure)).to_have_text(re.compile(r"\d+"))
    assert 0 < int(visit.text("#delay")) < 10_000
    assert int(visit.text("#dropped")) == 0
    expect(visit.page.locator("#timer")).not_to_have_text("0:00")
    visit.end()
    assert visit.text("#call-title") == "The call is over"


def test_the_chosen_parameters_are_sent_to_the_server(visit: Visit, gateway: Gateway) -> None:
    page = visit.page
    page.get_by_role("radio", name="Varied, male 2").check()
    assert visit.text("#voice-name") == "VARM2"
    page.get_by_label("Role").select_option("teacher")
    assert "teacher" in page.locator("#prompt").input_value()
    page.get_by_text("More options").click()
    page.get_by_label("Seed").fill("42")
    page.get_by_label("Word temperature").fill("0.5")
    visit.start()
    assert "VARM2, teacher" in visit.text("#call-note")
    visit.end()
    (kind, sampler), *_ = gateway.engine.samplers
    assert (kind, sampler.seed, sampler.temperature) == ("text", 42, 0.5)
    runtime = gateway.app.state.runtime
    embeddings = gateway.engine.prefills[0].embeddings
    assert np.array_equal(embeddings, runtime.voices.require("VARM2").preset.embeddings)


def test_an_edited_preset_becomes_a_custom_prompt(visit: Visit, gateway: Gateway) -> None:
    visit.page.locator("#prompt").fill("You are a lighthouse.")
    assert visit.page.locator("#role").input_value() == ""
    visit.start()
    visit.end()
    tokens = gateway.app.state.runtime.tokenizer.encode_prompt("You are a lighthouse.")
    assert tokens == [token for token in gateway.engine.prefills[0].steps[:, 0] if token != 3]


def test_a_focused_prompt_is_not_overwritten(visit: Visit) -> None:
    """Voices and prompts may arrive late."""
    page = visit.page
    held: list[Route] = []
    page.route("**/v1/system-prompts", lambda route: held.append(route))
    page.reload(wait_until="commit")
    page.locator("#prompt").focus()
    visit.wait_until(lambda: held)
    held[0].continue_()
    expect(page.locator(".chip").first).to_be_visible()
    assert page.locator("#prompt").input_value() == ""
    page.keyboard.type("You are a lighthouse.")
    assert page.locator("#prompt").input_value() == "You are a lighthouse."
    assert page.locator("#role").input_value() == ""


def test_the_recording_has_the_user_left_and_the_agent_right(visit: Visit, gateway: Gateway) -> None:
    visit.start()
    visit.wait_until(lambda: len(gateway.engine.user_frames) >= 75)
    visit.end()
    # Ending a call takes a while on a busy machine: only the last figure is of the last frames.
    delay = visit.page.evaluate("+document.getElementById('delay').textContent") / 1000
    left, right = visit.recording().T
    user_audio = np.concatenate(gateway.engine.user_frames)
    # Each side ends with the last whole block before the end; the first may have begun before the call did.
    assert abs(len(left) - len(user_audio)) <= 2 * FRAME
    for side in (left, right):
        assert np.sqrt(np.mean(side**2)) > 0.005
    # The left channel equals the audio that the server received.
    start = lag(user_audio, np.pad(left, (FRAME, 0)))
    begin = max(0, FRAME - start)
    assert np.allclose(left[: 20 * FRAME], user_audio[begin : begin + 20 * FRAME], atol=2 / 32768)
    # The displayed delay is the median of the last two seconds, measured from the end of a user frame.
    assert abs((np.median(echoes(left, right)) - FRAME) / RATE - delay) < 0.2


def test_muting_sends_silence(visit: Visit, gateway: Gateway) -> None:
    user_audio = gateway.engine.user_frames
    visit.start()
    visit.wait_until(lambda: any(frame.any() for frame in user_audio))
    visit.page.click("#mute")
    expect(visit.page.get_by_role("button", name="Muted")).to_have_attribute("aria-pressed", "true")
    visit.wait_until(lambda: len(user_audio) > 20 and not np.any(user_audio[-20:]))
    visit.page.click("#mute")
    expect(visit.page.get_by_role("button", name="Mute", exact=True)).to_have_attribute("aria-pressed", "false")
    now = len(user_audio)
    visit.wait_until(lambda: bool(np.any(user_audio[now:])))
    visit.end()


def test_the_transcript_can_be_downloaded(visit: Visit) -> None:
    visit.start()
    visit.transcript_grows()
    visit.end()
    with visit.page.expect_download() as download:
        visit.page.click("#download-text")
    saved = download.value.path().read_text()
    shown = visit.page.locator("#lines li p").all_inner_texts()
    assert saved.startswith("0:00  ")
    assert all(line.strip() in saved for line in shown)


def test_a_second_call_can_follow(visit: Visit, gateway: Gateway) -> None:
    visit.start()
    visit.transcript_grows()
    visit.end()
    visit.page.get_by_role("button", name="New call").click()
    visit.in_state("idle")
    visit.start()
    assert visit.text("#timer") == "0:00"
    visit.transcript_grows()
    visit.end()
    assert gateway.engine.opened == 2
    visit.wait_until(lambda: gateway.engine.closed == 2)


def test_a_call_can_be_cancelled_during_setup(visit: Visit, gateway: Gateway) -> None:
    gateway.engine.delay = 3600
    expect(visit.page.locator(".chip").first).to_be_visible()
    visit.page.click("#start")
    visit.in_state("preparing")
    # The prefill has begun, and takes an hour.
    visit.wait_until(lambda: bool(gateway.engine.calls))
    gateway.engine.delay = 0
    visit.page.get_by_role("button", name="Cancel").click()
    visit.in_state("idle")
    expect(visit.page.locator("#alert")).to_be_hidden()
    expect(visit.page.locator("#start")).to_be_focused()


def test_closing_the_page_ends_the_call(visit: Visit, gateway: Gateway, visit_to: Callable[..., Visit]) -> None:
    other = visit_to(gateway.url)
    other.start()
    other.page.close(run_before_unload=False)
    visit.wait_until(lambda: gateway.engine.closed == 1)


def test_the_server_resamples_if_the_browser_does_not(visit: Visit, gateway: Gateway) -> None:
    visit.page.add_init_script(
        """const source = AudioContext.prototype.createMediaStreamSource;
        AudioContext.prototype.createMediaStreamSource = function (stream) {
          if (this.sampleRate === 24000) throw new DOMException("different sample-rate", "NotSupportedError");
          return source.call(this, stream);
        };
        const send = WebSocket.prototype.send;
        WebSocket.prototype.send = function (data) {
          if (typeof data === "string") (window.sent ??= []).push(JSON.parse(data));
          return send.call(this, data);
        };"""
    )
    visit.page.reload()
    visit.start()
    visit.wait_until(lambda: len(gateway.engine.user_frames) >= 50)
    assert visit.page.evaluate("sent[0].audio.sample_rate") in (44100, 48000)
    visit.end()
    left, right = visit.recording().T
    user_audio = np.concatenate(gateway.engine.user_frames)
    assert abs(len(left) - len(user_audio)) <= 4 * FRAME
    assert 0 < lag(left, right) < RATE
    quiet = np.sqrt(np.mean(user_audio**2))
    assert np.isclose(np.sqrt(np.mean(left**2)), quiet, rtol=0.2)


def test_the_transcript_begins_a_new_line_after_a_pause(visit: Visit) -> None:
    lines = visit.page.evaluate(
        """async () => {
          const { Transcript } = await import("./page/transcript.js");
          const transcript = new Transcript(document.createElement("ol"));
          for (const [index, text] of [[1, " Hel"], [2, "lo."], [40, " Well"], [54, ","], [900, " so."]])
            transcript.add({ index, text });
          return transcript.text().trimEnd().split("\\n");
        }"""
    )
    assert lines == ["0:00  Hello.", "0:03  Well,", "1:12  so."]
