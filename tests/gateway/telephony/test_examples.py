"""The examples of the documentation, carried out as the services would: each connects a call with its settings."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import pytest

from tests.gateway.conftest import VOICE_FRAMES
from tests.gateway.telephony.conftest import Serve, call
from tests.gateway.telephony.phones import Asterisk, Message, Phone, Plivo, Telnyx, Twilio, Vonage

PAGE = Path(__file__).parents[3] / "docs" / "api" / "telephony.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
KEY = "KEY"


@dataclass
class Connection:
    """What a service makes of an example."""

    phone: Phone
    url: str
    hello: list[Message]
    headers: dict[str, str] = field(default_factory=dict)


def block(language: str, word: str) -> str:
    (text,) = [text for found, text in BLOCKS if found == language and word in text]
    return str(text)


def twilio() -> Connection:
    stream = ElementTree.fromstring(block("xml", "<Connect>")).find("Connect/Stream")
    assert stream is not None
    parameters = {each.attrib["name"]: each.attrib["value"] for each in stream.findall("Parameter")}
    phone = Twilio()
    # It cannot send the key in a header.
    return Connection(phone, stream.attrib["url"], phone.hello(**parameters, api_key=KEY))


def plivo() -> Connection:
    stream = ElementTree.fromstring(block("xml", "extraHeaders")).find("Stream")
    assert stream is not None
    assert stream.text is not None
    encoding, rate = re.fullmatch(r"audio/x-(\w+);rate=(\d+)", stream.attrib["contentType"]).groups()  # type: ignore[union-attr]
    phone = Plivo({"mulaw": "ulaw", "l16": "pcm_s16le"}[encoding], int(rate))
    (start,) = map(json.loads, phone.hello())
    start["extra_headers"] = f"{stream.attrib['extraHeaders']},apikey={KEY}"
    return Connection(phone, stream.text.strip(), [json.dumps(start)])


def telnyx() -> Connection:
    body = json.loads(block("json", "stream_url"))
    assert body["stream_codec"] == body["stream_bidirectional_codec"] == "PCMU"
    assert body["stream_bidirectional_mode"] == "rtp"
    phone = Telnyx("ulaw", 8000)
    connected, start = phone.hello(**{each["name"]: each["value"] for each in body["custom_parameters"]})
    headers = {"x-telnyx-streaming-auth-token": body["stream_auth_token"]}
    return Connection(phone, body["stream_url"], [connected, start], headers)


def vonage() -> Connection:
    (action,) = json.loads(block("json", "endpoint"))
    (endpoint,) = action["endpoint"]
    rate = int(endpoint["content-type"].removeprefix("audio/l16;rate="))
    phone = Vonage("pcm_s16le", rate)
    assert endpoint["authorization"]["type"] == "custom"
    headers = {"Authorization": endpoint["authorization"]["value"]}
    return Connection(phone, endpoint["uri"], phone.hello(**endpoint["headers"]), headers)


def asterisk() -> Connection:
    text = block("ini", "exten")
    client = dict(re.findall(r"^(\w+) = (.+)$", text, re.MULTILINE))
    name, options = re.findall(r"Dial\(WebSocket/(\w+)/(.*)\)$", text, re.MULTILINE)[0]
    assert f"[{name}]" in text
    assert client["connection_type"] == "per_call_config"
    # Dial's own function.
    options = re.sub(r"\$\{URIENCODE\((.*?)\)\}", lambda found: quote(found[1], safe=""), options)
    codec, form, variables = re.fullmatch(r"c\((\w+)\)f\((\w+)\)nv\((.*)\)", options).groups()  # type: ignore[union-attr]
    assert form == "json"
    phone = Asterisk(codec, 24_000)
    assert phone.subprotocols == [client["protocols"]]
    basic = b64encode(f"{client['username']}:{client['password']}".encode()).decode()
    url = client["uri"] + "?" + "&".join(variables.split(","))
    return Connection(phone, url, phone.hello(), {"Authorization": f"Basic {basic}"})


@pytest.mark.parametrize("example", [twilio, plivo, telnyx, vonage, asterisk])
async def test_the_call_of_an_example(serve: Serve, example: Any) -> None:
    connection: Connection = example()
    phone, url = connection.phone, urlsplit(connection.url)
    assert (url.scheme, url.path) == ("wss", phone.path)
    query = f"?{url.query}" if url.query else ""
    async with serve(api_keys=[KEY], default_voice="NATM1") as server:
        async with call(server, phone, query, additional_headers=connection.headers) as caller:
            await caller.send(*connection.hello)
            await caller.until_audio(0.1)
            await caller.hang_up()
        await server.until_free()
        (prompt,) = server.engine.prefills
        tokens = [token for token in prompt.steps[:, 0].tolist() if token != 3]
        assert tokens == server.runtime.tokenizer.encode_prompt("You are Ana.")
        # The last frame of a voice is not an embedding.
        assert len(prompt.embeddings) == VOICE_FRAMES["NATF0"] - 1
