"""Serve the schemas of the live APIs: /asyncapi.json for the WebSockets, /personaplex.proto for gRPC."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response


@dataclass(frozen=True, slots=True)
class Channel:
    """One WebSocket API.

    client, server: a model per JSON message of each side. client_binary, server_binary: what binary messages are, if
    there are any.
    """

    name: str
    path: str
    description: str
    client: tuple[type[BaseModel], ...] = ()
    server: tuple[type[BaseModel], ...] = ()
    client_binary: str = ""
    server_binary: str = ""


def install(app: FastAPI, channels: Sequence[Channel]) -> None:
    """Serve both documents. They have nothing of this server's own, so no key is needed."""
    schemas = _rendered(app.title, app.version, tuple(channels))
    proto = (files("gateway.api.grpc.personaplex.v1") / "personaplex.proto").read_text()

    async def asyncapi(_: Request) -> Response:
        return Response(schemas, media_type="application/json")

    async def protocol_buffers(_: Request) -> Response:
        return PlainTextResponse(proto)

    app.add_route("/asyncapi.json", asyncapi, include_in_schema=False)
    app.add_route("/personaplex.proto", protocol_buffers, include_in_schema=False)


@cache
def _rendered(title: str, version: str, channels: tuple[Channel, ...]) -> bytes:
    """`document` as JSON, made once in a process: it takes 60 ms, and is the same for each application."""
    return json.dumps(document(title, version, channels)).encode()


def document(title: str, version: str, channels: Sequence[Channel]) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document, from the server's side: it receives what clients send.

    Messages are called CHANNEL.MODEL, as their schemas are.
    """
    found: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": version, "description": "The live APIs over WebSocket."},
        "defaultContentType": "application/json",
        "channels": {},
        "operations": {},
        "components": {"messages": {}, "schemas": {}},
    }
    for channel in channels:
        _add(found, channel)
    return found


def _add(found: dict[str, Any], channel: Channel) -> None:
    messages: dict[str, Any] = {}
    sides: tuple[tuple[str, tuple[type[BaseModel], ...], str], ...] = (
        ("receive", channel.client, channel.client_binary),
        ("send", channel.server, channel.server_binary),
    )
    for action, models, binary in sides:
        names = []
        # Clients may leave out what has a default; the server never does.
        mode: Any = "validation" if action == "receive" else "serialization"
        prefix = f"{channel.name}.{action}"
        references, definitions = models_json_schema(
            [(model, mode) for model in models], ref_template=f"#/components/schemas/{prefix}.{{model}}"
        )
        for name, schema in definitions.get("$defs", {}).items():
            found["components"]["schemas"][f"{prefix}.{name}"] = schema
        for model in models:
            name = f"{prefix}.{model.__name__}"
            # By their type the messages of a side are told apart, whether a model has it as a default or not.
            schema = found["components"]["schemas"][name]
            schema["required"] = sorted({*schema.get("required", ()), *({"type"} & schema["properties"].keys())})
            payload = {"payload": references[model, mode]}
            found["components"]["messages"][name] = {"name": model.__name__, "summary": _summary(model), **payload}
            names.append(name)
        if binary:
            name = f"{prefix}.Binary"
            payload = {"payload": {"type": "string", "format": "binary"}}
            found["components"]["messages"][name] = {
                "name": "Binary", "summary": binary, "contentType": "application/octet-stream", **payload
            }  # fmt: skip
            names.append(name)
        messages |= {name: {"$ref": f"#/components/messages/{name}"} for name in names}
        found["operations"][prefix] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{channel.name}"},
            "messages": [{"$ref": f"#/channels/{channel.name}/messages/{name}"} for name in names],
        }
    found["channels"][channel.name] = {
        "address": channel.path, "description": channel.description, "messages": messages,
        "bindings": {"ws": {"method": "GET"}},
    }  # fmt: skip


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n", 1)[0]
