"""uvicorn's HTTP protocol, which also lets an answer cut its line."""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.rest.disconnect import ABORT


class AnswerProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    def on_message_begin(self) -> None:
        """As uvicorn does, and tells the app how to cut the line."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {ABORT: self.transport.abort}
