"""Error messages of the page when a call cannot start, or ends early."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.page.browser import ALLOWED, DENIED, FAKE_MICROPHONE, Visit, chromium, visiting
from tests.page.conftest import Gateway
from tests.series import total


def final_message(visit: Visit) -> str:
    """Wait until the call is over; return the title and the note."""
    expect(visit.page.locator("#after")).to_be_visible()
    return f"{visit.text('#call-title')}. {visit.text('#call-note')}"


def test_error_if_the_microphone_is_denied(gateway: Gateway) -> None:
    with chromium(*DENIED, *FAKE_MICROPHONE) as browser, visiting(browser, gateway.url, permissions=()) as visit:
        assert "The microphone is blocked" in visit.error()
        assert gateway.engine.opened == 0


def test_error_without_a_microphone(gateway: Gateway) -> None:
    with chromium(*ALLOWED) as browser, visiting(browser, gateway.url) as visit:
        # Chromium uses the devices of the machine here. The test does not depend on them.
        visit.page.add_init_script(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); };"
        )
        visit.page.reload()
        assert "There is no microphone" in visit.error()


def test_error_if_the_page_is_not_secure(gateway: Gateway) -> None:
    host = "talk.example"
    port = gateway.url.rsplit(":", 1)[1]
    with (
        chromium(*ALLOWED, *FAKE_MICROPHONE, f"--host-resolver-rules=MAP {host} 127.0.0.1") as browser,
        visiting(browser, f"http://{host}:{port}") as visit,
    ):
        expect(visit.page.locator("#alert")).to_contain_text("This page is not secure")
        assert "https://" in visit.error()


def test_error_if_all_slots_are_taken(gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]) -> None:
    gateway = gateway_with(slots=1, retry_after=7)
    first, second = visit_to(gateway.url), visit_to(gateway.url)
    first.start()
    message = second.error()
    assert "All calls are taken" in message
    assert "about 7 seconds" in message
    first.end()
    second.start()
    second.end()


def test_error_if_all_calls_of_the_key_are_taken(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    gateway = gateway_with(api_keys=["sesame"], key_conversations=1)
    first, second = visit_to(gateway.url), visit_to(gateway.url)
    for visit in (first, second):
        visit.page.get_by_label("API key").fill("sesame")
    first.page.keyboard.press("Enter")
    first.in_state("talking")
    second.page.keyboard.press("Enter")
    expect(second.page.locator("#alert")).to_contain_text("Your calls are all taken")
    first.end()


def test_the_key_field_appears_only_if_the_server_needs_a_key(
    visit: Visit, gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    expect(visit.page.locator(".chip").first).to_be_visible()
    expect(visit.page.get_by_label("API key")).to_be_hidden()

    other = visit_to(gateway_with(api_keys=["open sesame", "sesame"]).url)
    expect(other.page.locator("#alert")).to_contain_text("An API key is needed")
    key = other.page.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill("wrong")
    other.page.click("#start")
    expect(other.page.locator("#alert")).to_contain_text("This API key is not known")
    # A valid key may have characters that a page cannot send in a WebSocket handshake.
    key.fill("open sesame")
    other.page.click("#start")
    expect(other.page.locator("#alert")).to_contain_text("cannot be used here")
    key.fill("sesame")
    other.start()
    expect(other.page.locator("#alert")).to_be_hidden()
    other.end()


def test_error_if_the_server_shuts_down_during_the_call(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    gateway = gateway_with(drain_seconds=0.5)
    visit = visit_to(gateway.url)
    visit.start()
    gateway.drain()
    assert "The server shut down" in final_message(visit)
    expect(visit.page.locator("#server")).to_have_text("Server shutting down")
    visit.page.click("#again")
    assert "The server is shutting down" in visit.error()


def test_error_if_the_connection_is_lost(visit: Visit, gateway: Gateway) -> None:
    visit.start()
    visit.transcript_grows()
    gateway.cut_connections()
    assert "The connection was lost" in final_message(visit)
    assert "cannot be continued" in final_message(visit)
    assert len(visit.recording()) > 0


def test_a_call_whose_connection_is_lost_goes_on_if_it_can_be_resumed(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    gateway = gateway_with(resume_seconds=30)
    visit = visit_to(gateway.url)
    visit.start()
    visit.transcript_grows()
    gateway.cut_connections()
    metrics = gateway.app.state.runtime.metrics
    visit.wait_until(lambda: total(metrics, "personaplex_resumed_total", api="converse") == 1)
    visit.transcript_grows()
    visit.end()
    assert visit.text("#call-title") == "The call is over"


def test_error_if_a_lost_call_cannot_be_resumed(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    gateway = gateway_with(resume_seconds=30)
    visit = visit_to(gateway.url)
    visit.start()
    visit.transcript_grows()
    (session,) = gateway.app.state.runtime.live_sessions._resumable.values()
    gateway.cut_connections()
    gateway.loop.call_soon_threadsafe(session.stop_for_drain)
    message = final_message(visit)
    assert message.startswith("The connection was lost. ")
    assert "no session to resume" not in message.lower()


def test_a_connection_without_messages_is_closed(visit: Visit, gateway: Gateway) -> None:
    """A half-open connection does not close on its own."""
    blocked = False

    def relay(ws: WebSocketRoute) -> None:
        server = ws.connect_to_server()
        server.on_message(lambda message: None if blocked else ws.send(message))

    visit.page.route_web_socket("**/v1/converse", relay)
    visit.page.clock.install()
    visit.page.reload()
    visit.start()
    blocked = True
    warning, over = visit.page.locator("#warning"), visit.page.locator("#after")
    _hurry(visit, lambda: warning.is_visible())
    assert warning.inner_text() == "The server has gone quiet."
    assert not over.is_visible()
    _hurry(visit, lambda: over.is_visible())
    assert "The connection was lost" in final_message(visit)


def test_error_if_the_server_is_unreachable(visit: Visit, gateway: Gateway) -> None:
    expect(visit.page.locator(".chip").first).to_be_visible()
    gateway.server.should_exit = True
    _until_gone(visit.page, gateway)
    assert "The server cannot be reached" in visit.error()


@pytest.mark.parametrize("when", ["before", "during"])
def test_error_if_the_models_fail(visit: Visit, gateway: Gateway, when: str) -> None:
    if when == "during":
        visit.start()
    gateway.engine.down = True
    message = final_message(visit) if when == "during" else visit.error()
    assert "The models failed" in message


def test_the_call_ends_at_its_maximum_duration(
    gateway_with: Callable[..., Gateway], visit_to: Callable[..., Visit]
) -> None:
    visit = visit_to(gateway_with(max_call_seconds=4, warn_seconds=3).url)
    visit.start()
    expect(visit.page.locator("#warning")).to_contain_text("The call will end in")
    assert "longest duration" in final_message(visit)


def test_error_if_the_prompt_is_too_long(visit: Visit) -> None:
    expect(visit.page.locator(".chip").first).to_be_visible()
    visit.page.locator("#prompt").fill("word " * 3900)
    message = visit.error()
    assert "The server refused the call" in message
    assert "more than the model's context" in message


def _hurry(visit: Visit, condition: Callable[[], bool]) -> None:
    """Move the page's clock until `condition` holds, in steps that are too short to look like a paused microphone."""
    for _ in range(600):
        if condition():
            return
        visit.page.clock.fast_forward(800)
        visit.page.wait_for_timeout(100)
    raise AssertionError("the condition did not become true")


def _until_gone(page: Page, gateway: Gateway) -> None:
    for _ in range(600):
        if not gateway.server.started or gateway.loop.is_closed():
            return
        page.wait_for_timeout(50)
    raise AssertionError("the server did not stop")
