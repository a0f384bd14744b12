"""The published schemas of the WebSocket APIs, as validators."""

from __future__ import annotations

from functools import cache
from typing import Literal

from jsonschema import Draft202012Validator

from gateway.api import asyncapi
from gateway.api.openai import schemas
from gateway.api.telephony import schemas as telephony
from gateway.api.websocket import chat, converse

CHANNELS = (converse.CHANNEL, *chat.CHANNELS, *schemas.CHANNELS, *telephony.CHANNELS)


@cache
def validator(channel: str, action: Literal["receive", "send"]) -> Draft202012Validator:
    """Return the validator of what the server receives or sends on a channel."""
    published = asyncapi.document("PersonaPlex", "0", CHANNELS)
    messages = published["components"]["messages"].items()
    payloads = [message["payload"] for name, message in messages if name.startswith(f"{channel}.{action}.")]
    schema = {"anyOf": [one for one in payloads if "$ref" in one], "components": published["components"]}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def types(channel: str, action: Literal["receive", "send"]) -> set[str]:
    """Return the types of the messages: the constants of the field that tells them apart."""
    published = asyncapi.document("PersonaPlex", "0", CHANNELS)["components"]
    found: set[str] = set()
    for name in published["messages"]:
        if name.startswith(f"{channel}.{action}.") and name in published["schemas"]:
            properties = published["schemas"][name]["properties"]
            (kind,) = (properties[tag] for tag in ("type", "event", "action", "command") if tag in properties)
            found |= {kind["const"]} if "const" in kind else set(kind["enum"])
    return found
