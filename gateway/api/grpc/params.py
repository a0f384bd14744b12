"""What a caller asks for in protobuf, as the checked requests all faces share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError
from pydantic import ValidationError

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.rest.body import explained
from gateway.api.rest.schemas import LiveParams, RespondRequest
from gateway.errors import InvalidRequest, MalformedBody
from gateway.session.limits import OnGap

AnyMessage = TypeVar("AnyMessage", pb.RespondRequest, pb.ConverseRequest)

_ON_GAP: dict[int, OnGap] = {
    pb.ON_GAP_UNSPECIFIED: "wait",
    pb.ON_GAP_WAIT: "wait",
    pb.ON_GAP_SILENCE: "silence",
}


def parser(kind: type[AnyMessage]) -> Callable[[bytes], AnyMessage | None]:
    """A deserializer that gives None for bytes that are no such message.

    One that raises would end the call as UNKNOWN, with the names of our internals.
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
    """What `parser` gave. Raises MalformedBody if it was nothing."""
    if message is None:
        raise MalformedBody(f"expected a personaplex.v1.{name}, got bytes that are none")
    return message


def respond_request(asked: pb.RespondRequest) -> RespondRequest:
    """Raises InvalidRequest, naming every field at fault."""
    params = _persona(asked)
    if asked.HasField("voice_audio"):
        params["voice_audio"] = asked.voice_audio
    if asked.HasField("max_steps"):
        params["max_steps"] = asked.max_steps
    if asked.include_tokens:
        params["include"] = ["tokens"]
    try:
        return RespondRequest.model_validate({"audio": asked.audio, **params})
    except ValidationError as error:
        raise explained(error) from None


def live_params(asked: pb.Start) -> LiveParams:
    """Raises InvalidRequest, naming every field at fault."""
    on_gap = _ON_GAP.get(asked.on_gap)
    if on_gap is None:
        raise InvalidRequest(f"expected a value of OnGap, got {asked.on_gap}", "on_gap")
    try:
        return LiveParams(on_gap=on_gap, **_persona(asked))
    except ValidationError as error:
        raise explained(error) from None


def _persona(asked: pb.RespondRequest | pb.Start) -> dict[str, Any]:
    """The fields that are there, by the names they have in every face."""
    params = {field.name: value for field, value in asked.sampling.ListFields()}
    for name in ("voice", "system_prompt", "text_prompt"):
        if asked.HasField(name):
            params[name] = getattr(asked, name)
    return params
