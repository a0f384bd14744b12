"""Read a request's body within its limits and validate it: one model for JSON and for forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from gateway.api.rest.json_body import JsonBody
from gateway.errors import (
    FieldError,
    InvalidFields,
    MalformedBody,
    PayloadTooLarge,
    UnsupportedMediaType,
    UploadTimeout,
)
from gateway.session.admission import Upload
from gateway.session.params import MAX_PROMPT_CHARACTERS, RespondRequest, invalid_params
from gateway.settings import Settings

JSON = "application/json"
FORM = "multipart/form-data"
_FILES = ("audio", "voice_audio")
_LISTS = ("include",)

# Parsed at once: other tasks run between two pieces. The multipart parser takes 1 µs per byte of a header.
_PIECE_BYTES = 8 * 2**10


async def read(request: Request, upload: Upload, settings: Settings) -> RespondRequest:
    """Read and check the body of an admitted request.

    Raises:
        UnsupportedMediaType, PayloadTooLarge, UploadBudgetExceeded: before the first byte is read, if the headers
            are enough to decide.
        UploadTimeout: the body takes too long to arrive.
        MalformedBody, InvalidRequest: the body does not match its content type, or fields are invalid.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        raise UnsupportedMediaType(f"expected {FORM} or {JSON}, got {kind or 'no content type'}")
    limit = settings.max_body_bytes
    if (declared := request.headers.get("content-length", "")).isdigit():
        if int(declared) > limit:
            raise _too_large(limit)
        upload.reserve(int(declared))
    pieces = _pieces(request, limit, upload)
    try:
        async with asyncio.timeout(settings.upload_seconds):
            return await (_json(pieces) if kind == JSON else _form(request, pieces, upload))
    except TimeoutError:
        raise UploadTimeout(f"the body did not arrive within {settings.upload_seconds:g} s") from None
    except ValidationError as error:
        raise invalid_params(error) from None


async def _pieces(request: Request, limit: int, upload: Upload) -> AsyncIterator[bytes]:
    """Yield the body in small pieces. The limit and the budget apply whatever the headers declare."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        upload.reserve(size)
        for at in range(0, len(chunk), _PIECE_BYTES):
            yield chunk[at : at + _PIECE_BYTES]
            await asyncio.sleep(0)


async def _json(pieces: AsyncIterator[bytes]) -> RespondRequest:
    body = JsonBody()
    async for piece in pieces:
        body.write(piece)
    files = {token: audio.file for token, audio in body.files.items()}
    return RespondRequest.model_validate_json(body.document(), strict=True, context=files)


async def _form(request: Request, pieces: Any, upload: Upload) -> RespondRequest:
    """Check a form: files stay files, everything else is text."""
    # Bytes; a character has at most four.
    parser = MultiPartParser(
        request.headers, pieces, max_files=8, max_fields=64, max_part_size=4 * MAX_PROMPT_CHARACTERS
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"expected {FORM}: {error.message}") from None
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            # Closing a file of 64 MiB takes 25 ms.
            upload.resources.callback(asyncio.get_running_loop().run_in_executor, None, value.file.close)
    return RespondRequest.model_validate(_fields(form))


def _fields(form: FormData) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    errors: list[FieldError] = []
    for name in form:
        values = form.getlist(name)
        if name in _LISTS:
            fields[name] = values
        elif len(values) > 1:
            errors.append(FieldError(field=name, message=f"expected once, got {len(values)} times"))
        elif isinstance(value := values[0], UploadFile) != (name in _FILES):
            expected = "a file (with a filename)" if name in _FILES else "text, not a file"
            errors.append(FieldError(field=name, message=f"expected {expected}"))
        else:
            fields[name] = value.file if isinstance(value, UploadFile) else value
    if errors:
        raise InvalidFields(errors)
    return fields


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"expected a body of at most {limit} bytes")
