"""The page in a real browser, on the real gateway and the real Triton."""

from __future__ import annotations

import numpy as np
import pytest

from tests.end_to_end.conftest import Service
from tests.page.browser import ALLOWED, FAKE_MICROPHONE, chromium, visiting


# The short forms are the page's own tests, and those of its API.
@pytest.mark.long
def test_a_conversation_from_the_page_through_triton(tiny_service: Service) -> None:
    heard_before = tiny_service.counts("mimi_encoder").inferences
    with (
        chromium(*ALLOWED, *FAKE_MICROPHONE) as browser,
        visiting(browser, tiny_service.url.replace("127.0.0.1", "localhost")) as visit,
    ):
        visit.start()
        visit.transcript_grows()
        visit.wait_until(lambda: tiny_service.counts("mimi_encoder").inferences - heard_before > 50)
        visit.end()
        assert visit.text("#call-title") == "The call is over"
        left, right = visit.recording().T
    assert len(left) > 40 * 1920
    for side in (left, right):
        assert np.sqrt(np.mean(side**2)) > 0.001
    tiny_service.wait_until_free()
