"""JSON bodies that arrive in pieces are parsed as by a JSON parser."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.rest.json_body import MAX_REST, JsonBody
from gateway.errors import PayloadTooLarge


def parsed(document: bytes, size: int) -> dict[str, Any]:
    """Parse the document in pieces of `size` bytes, with audio as bytes; None for audio that is not base64."""
    body = JsonBody()
    for at in range(0, len(document), size):
        body.write(document[at : at + size])
    found = json.loads(body.document())

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(item) for key, item in value.items()}
        if isinstance(value, str) and value in body.files:
            file = body.files[value].file
            return file if file is None else file.getvalue()
        return value

    return restored(found)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


TEXT = st.text(max_size=20) | st.text(alphabet='"\\{}:,audio/u0', max_size=20)
ESCAPES = [
    lambda text: text,
    lambda text: text.replace("/", "\\/"),
    lambda text: text.replace("+", "\\u002B").replace("=", "\\u003d"),
    lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
]


@settings(max_examples=200)
@given(
    st.binary(max_size=60),
    st.binary(max_size=10),
    TEXT,
    TEXT,
    st.integers(1, 40),
    st.sampled_from(ESCAPES),
    st.booleans(),
)
def test_pieces_of_any_size_give_the_document(
    audio: bytes, voice: bytes, key: str, text: str, size: int, escape: Any, ascii_only: bool
):
    rest = json.dumps({f"x{key}": text, "text_prompt": text, "n": [1, 2.5, None]}, ensure_ascii=ascii_only)
    document = f'{{"audio" :\n "{escape(encoded(audio))}", "voice_audio":"{encoded(voice)}", {rest[1:]}'
    expected = {**json.loads(rest), "audio": audio, "voice_audio": voice}
    assert parsed(document.encode(), size) == expected


@pytest.mark.parametrize("size", [0, 1, 2, 3, 3 * 2**16 - 1, 3 * 2**16, 3 * 2**16 + 1])
@pytest.mark.parametrize("piece", [4096, 65_537, 10**7])
def test_large_audio(size: int, piece: int):
    data = np.random.default_rng(size).bytes(size)
    assert parsed(json.dumps({"seed": 1, "audio": encoded(data)}).encode(), piece) == {"seed": 1, "audio": data}


@pytest.mark.parametrize("piece", [1, 3, 100_000])
@pytest.mark.parametrize(
    "text", ["A", "AA=", "A===", "AA=A", "AAAA=", "AA==AAAA", "AAA AAAA", "AAA\\n", "\\ud83d\\ude00", "A" * 2**16 + "="]
)
def test_invalid_base64_is_marked(text: str, piece: int):
    assert parsed(f'{{"audio": "{text}"}}'.encode(), piece) == {"audio": None}


@pytest.mark.parametrize("text", ['{"audio": "AAAA', '{"audio": "AA\\', "{", "", '{"audio": "AAAA"', '"'])
def test_a_truncated_document_is_rejected(text: str):
    with pytest.raises(json.JSONDecodeError):
        parsed(text.encode(), 4)


@pytest.mark.parametrize(
    "document",
    [b"[" * (MAX_REST + 1), b'{"voice": "' + b"x" * MAX_REST + b'"}', b'{"x":{"y":' * MAX_REST, b'"\\' * MAX_REST],
)
def test_data_besides_audio_is_limited(document: bytes):
    with pytest.raises(PayloadTooLarge):
        parsed(document, 8192)


def test_audio_may_exceed_that_limit():
    data = bytes(MAX_REST * 2)
    assert parsed(json.dumps({"audio": encoded(data)}).encode(), 8192) == {"audio": data}
