"""Convert protobuf requests to the validated parameters that all APIs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.errors import InvalidRequest, MalformedBody
from gateway.session.limits import OnGap
from gateway.session.params import LiveParams, RespondRequest, invalid_params

AnyMessage = TypeVar("AnyMessage", pb.RespondRequest, pb.ConverseRequest)

_ON_GAP: dict[int, OnGap] = {
    pb.ON_GAP_UNSPECIFIED: "wait",
    pb.ON_GAP_WAIT: "wait",
    pb.ON_GAP_SILENCE: "silence",
}


def parser(kind: type[AnyMessage]) -> Callable[[bytes], AnyMessage | None]:
    """Return a deserializer that returns None for bytes that cannot be parsed.

    An exception in a deserializer would end the RPC with UNKNOWN and expose internal names.
    """

    def parse(data: bytes) -> AnyMessage | None:
        message = kind()
        try:
            message.ParseFromString(data)
        except DecodeError:
            return None
        return message

    return parse


def require(message: AnyMessage | None, name: str) -> AnyMessage:
    """Return the message. Raises MalformedBody for None, the result of `parser` for bytes that cannot be parsed."""
    if message is None:
        raise MalformedBody(f"expected a personaplex.v1.{name}, got bytes that are none")
    return message


def respond_request(message: pb.RespondRequest) -> RespondRequest:
    """Convert a request. Raises InvalidRequest, which names every invalid field."""
    params = _persona(message)
    if message.HasField("voice_audio"):
        params["voice_audio"] = message.voice_audio
    if message.HasField("max_steps"):
        params["max_steps"] = message.max_steps
    if message.include_tokens:
        params["include"] = ["tokens"]
    try:
        return RespondRequest.model_validate({"audio": message.audio, **params})
    except ValidationError as error:
        raise invalid_params(error) from None


def live_params(message: pb.Start) -> LiveParams:
    """Convert `start`. Raises InvalidRequest, which names every invalid field."""
    on_gap = _ON_GAP.get(message.on_gap)
    if on_gap is None:
        raise InvalidRequest(f"expected a value of OnGap, got {message.on_gap}", "on_gap")
    try:
        return LiveParams(on_gap=on_gap, **_persona(message))
    except ValidationError as error:
        raise invalid_params(error) from None


def _persona(message: pb.RespondRequest | pb.Start) -> dict[str, Any]:
    """Return the fields that are set, by the names of the parameters."""
    params = {field.name: value for field, value in message.sampling.ListFields()}
    for name in ("voice", "system_prompt", "text_prompt"):
        if message.HasField(name):
            params[name] = getattr(message, name)
    return params
