"""The body of a request, read under a limit and checked: the same model for JSON and for forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gateway.api.rest.schemas import MAX_PROMPT_CHARACTERS, RespondRequest
from gateway.errors import FieldError, InvalidFields, MalformedBody, PayloadTooLarge, UnsupportedMediaType

JSON = "application/json"
FORM = "multipart/form-data"
_FILES = ("audio", "voice_audio")
_LISTS = ("include",)


async def read(request: Request, limit: int) -> RespondRequest:
    """Parse and check a body of at most `limit` bytes.

    Raises UnsupportedMediaType, PayloadTooLarge, MalformedBody, or InvalidFields with every field at fault.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise UnsupportedMediaType(f"expected {FORM} or {JSON}, got {kind or 'no content type'}")
    if (declared := request.headers.get("content-length", "")).isdigit() and int(declared) > limit:
        raise _too_large(limit)
    body = _limited(request, limit)
    try:
        if kind == JSON:
            whole = b"".join([chunk async for chunk in body])
            return await asyncio.to_thread(RespondRequest.model_validate_json, whole, strict=True)
        return RespondRequest.model_validate(await _form(request, body))
    except ValidationError as error:
        raise explained(error) from None


def explained(error: ValidationError) -> InvalidFields | MalformedBody:
    """What was wrong with a request, as an error of ours."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in found):
        return MalformedBody(f"expected {JSON}: {found[0]['msg'].removeprefix('Invalid JSON: ')}")
    return InvalidFields(
        [
            FieldError(
                field=".".join(str(part) for part in item["loc"]), message=item["msg"].removeprefix("Value error, ")
            )
            for item in found
        ]
    )


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The body's chunks, as long as they stay within the limit, whatever the headers declared."""
    left = limit
    async for chunk in request.stream():
        left -= len(chunk)
        if left < 0:
            raise _too_large(limit)
        yield chunk


async def _form(request: Request, body: Any) -> dict[str, Any]:
    """A form as the model takes it: files as bytes, everything else as text."""
    # In bytes; a character has at most four.
    parser = MultiPartParser(request.headers, body, max_files=8, max_fields=64, max_part_size=4 * MAX_PROMPT_CHARACTERS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"expected {FORM}: {error.message}") from None
    try:
        return await _fields(form)
    finally:
        await form.close()


async def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    problems: list[FieldError] = []
    for name in form:
        values = form.getlist(name)
        if name in _LISTS:
            fields[name] = values
        elif len(values) > 1:
            problems.append(FieldError(field=name, message=f"expected once, got {len(values)} times"))
        elif isinstance(value := values[0], UploadFile) != (name in _FILES):
            expected = "a file (with a filename)" if name in _FILES else "text, not a file"
            problems.append(FieldError(field=name, message=f"expected {expected}"))
        else:
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
    if problems:
        raise InvalidFields(problems)
    return fields


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"expected a body of at most {limit} bytes")
