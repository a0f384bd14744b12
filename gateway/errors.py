"""Errors that are reported to clients and operators; each API maps their attributes mechanically.

GatewayError
├── InvalidRequest             the request must change; `fields` names the parts at fault
│   ├── InvalidFields          several fields at once
│   ├── UnknownVoice           no preset voice has that name
│   ├── UnknownSystemPrompt    no preset prompt has that name
│   ├── PromptTooLong          the text prompt has more tokens than the model's context
│   └── AudioError             empty, corrupt, too long, or otherwise unusable audio
├── MalformedBody              the body cannot be parsed
├── UnsupportedMediaType       the body has a content type that the API does not read
├── PayloadTooLarge            the body or message exceeds the configured limit
├── NotAllowed                 the operator has not enabled this feature
├── Unauthorized               the API key is missing or unknown
├── HandshakeTimeout           the first message of a live session did not arrive in time
├── UploadTimeout              the request's body did not arrive in time
├── SlowClient                 the client does not read what is sent to it
├── ConversationBusy           a turn of that conversation is in progress
├── UnknownConversation        no turn session has that id, or no session that resume token
├── TakenOver                  another connection has resumed the live session
├── TryLater                   refused for now; `retry_after` in seconds
│   ├── TooManyForKey          this API key holds or has begun as many conversations as it may
│   ├── AtCapacity             every slot is taken
│   ├── UploadBudgetExceeded   the request bodies in flight exceed the configured total
│   └── Draining               the server accepts no new conversations
├── EngineUnavailable          Triton cannot be reached, is not ready, or lost the conversation
├── EngineError                Triton answered with an error
├── RepositoryError            the models folder is not a usable built repository
├── NameNotAllowed             the voice name is not valid, or the voice cannot be removed
└── NameTaken                  a voice of that name exists
"""

# ruff: noqa: N818 (the names state the condition; all of them are errors)

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import ClassVar, NamedTuple


class GatewayError(Exception):
    """Base of the tree; the message is one line for people."""

    code: ClassVar[str] = "internal-error"
    """Stable identifier for programs."""
    title: ClassVar[str] = "Internal error"
    """The same for people."""
    http_status: ClassVar[HTTPStatus] = HTTPStatus.INTERNAL_SERVER_ERROR
    grpc_status: ClassVar[str] = "INTERNAL"
    """Name of a `grpc.StatusCode`."""
    close_code: ClassVar[int] = 1011
    """WebSocket close code, RFC 6455 section 7.4.1."""
    end_reason: ClassVar[str] = "error"
    """Value of the `Reason` of a conversation that this error ends."""
    retriable: ClassVar[bool] = False
    """Whether the same request may succeed later; the API then states when to retry."""

    @property
    def message(self) -> str:
        return str(self)

    @property
    def fields(self) -> tuple[FieldError, ...]:
        """The fields of the request that are at fault."""
        return ()


class FieldError(NamedTuple):
    """A field of the request and what is wrong with it. `field` is empty for the request as a whole."""

    field: str
    message: str


class InvalidRequest(GatewayError):
    """The request cannot be served as it is; `field` is the field at fault, if there is one."""

    code = "invalid-request"
    title = "The request is not valid"
    http_status = HTTPStatus.UNPROCESSABLE_ENTITY
    grpc_status = "INVALID_ARGUMENT"
    close_code = 1007
    end_reason = "client_error"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    @property
    def fields(self) -> tuple[FieldError, ...]:
        return () if self.field is None else (FieldError(self.field, self.message),)


class InvalidFields(InvalidRequest):
    """Several fields are at fault."""

    def __init__(self, fields: Iterable[FieldError]) -> None:
        self._fields = tuple(fields)
        super().__init__("; ".join(f"{field}: {message}" if field else message for field, message in self._fields))

    @property
    def fields(self) -> tuple[FieldError, ...]:
        return self._fields


class UnknownVoice(InvalidRequest):
    """No preset voice has that name; the message lists the existing ones."""

    code = "unknown-voice"
    title = "There is no such voice"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no voice named {name!r}; there are: {', '.join(known) or 'none'}", field="voice")


class UnknownSystemPrompt(InvalidRequest):
    """No preset prompt has that name; the message lists the existing ones."""

    code = "unknown-system-prompt"
    title = "There is no such system prompt"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no system prompt named {name!r}; there are: {', '.join(known)}", field="system_prompt")


class PromptTooLong(InvalidRequest):
    """The text prompt alone exceeds the model's context."""

    code = "prompt-too-long"
    title = "The text prompt is too long"

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the text prompt has {tokens} tokens, more than the model's context of {context}", field="text_prompt"
        )


class AudioError(InvalidRequest):
    """The audio cannot be used; the message states what was expected and what was received."""

    code = "unusable-audio"
    title = "The audio cannot be used"

    def __init__(self, message: str, field: str = "audio") -> None:
        super().__init__(message, field=field)


class MalformedBody(GatewayError):
    """The body is not what its content type declares."""

    code = "malformed-body"
    title = "The body cannot be parsed"
    http_status = HTTPStatus.BAD_REQUEST
    grpc_status = "INVALID_ARGUMENT"
    close_code = 1007
    end_reason = "client_error"


class UnsupportedMediaType(GatewayError):
    """The API does not read bodies of this content type."""

    code = "unsupported-media-type"
    title = "This content type is not supported"
    http_status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    grpc_status = "INVALID_ARGUMENT"
    close_code = 1003
    end_reason = "client_error"


class PayloadTooLarge(GatewayError):
    """The body or message exceeds the configured limit."""

    code = "payload-too-large"
    title = "The body is too large"
    http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    grpc_status = "INVALID_ARGUMENT"
    close_code = 1009
    end_reason = "client_error"


class NotAllowed(GatewayError):
    """The operator has not enabled this feature, or does not allow this origin."""

    code = "not-allowed"
    title = "The operator does not allow this"
    http_status = HTTPStatus.FORBIDDEN
    grpc_status = "PERMISSION_DENIED"
    close_code = 1008
    end_reason = "client_error"


class Unauthorized(GatewayError):
    """The API key is missing or unknown; the message does not state which."""

    code = "unauthorized"
    title = "An API key is needed"
    http_status = HTTPStatus.UNAUTHORIZED
    grpc_status = "UNAUTHENTICATED"
    close_code = 1008
    end_reason = "client_error"


class HandshakeTimeout(GatewayError):
    """The first message of a live session did not arrive in time."""

    code = "handshake-timeout"
    title = "The first message did not arrive in time"
    http_status = HTTPStatus.REQUEST_TIMEOUT
    grpc_status = "DEADLINE_EXCEEDED"
    close_code = 1008
    end_reason = "client_error"


class UploadTimeout(GatewayError):
    """The request's body did not arrive in time."""

    code = "upload-timeout"
    title = "The body did not arrive in time"
    http_status = HTTPStatus.REQUEST_TIMEOUT
    grpc_status = "DEADLINE_EXCEEDED"
    close_code = 1008
    end_reason = "client_error"


class SlowClient(GatewayError):
    """The client does not read what is sent to it."""

    code = "slow-client"
    title = "The answer is not read"
    http_status = HTTPStatus.REQUEST_TIMEOUT
    grpc_status = "RESOURCE_EXHAUSTED"
    close_code = 1008
    end_reason = "slow_client"


class UnknownConversation(GatewayError):
    """No session has that id or resume token: it never existed, has ended, or belongs to another API key."""

    code = "unknown-conversation"
    title = "There is no such conversation"
    http_status = HTTPStatus.NOT_FOUND
    grpc_status = "NOT_FOUND"
    close_code = 1008
    end_reason = "client_error"


class TakenOver(GatewayError):
    """Another connection has resumed the live session. It continues there."""

    code = "taken-over"
    title = "The session continues over another connection"
    http_status = HTTPStatus.CONFLICT
    grpc_status = "ABORTED"
    close_code = 1008
    end_reason = "client_error"


class ConversationBusy(GatewayError):
    """A conversation takes one turn at a time."""

    code = "conversation-busy"
    title = "A turn is in progress"
    http_status = HTTPStatus.CONFLICT
    grpc_status = "ABORTED"
    close_code = 1008
    end_reason = "client_error"

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"a turn of conversation {conversation_id!r} is still in progress; wait for its answer")


class TryLater(GatewayError):
    """The request is refused for now. `retry_after`: seconds after which to retry."""

    http_status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_status = "RESOURCE_EXHAUSTED"
    close_code = 1013
    retriable = True

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} s")
        self.retry_after = retry_after


class TooManyForKey(TryLater):
    """This API key holds or has begun as many conversations as it may; `limit` says which."""

    code = "too-many-for-key"
    title = "All conversations of this key are taken"
    http_status = HTTPStatus.TOO_MANY_REQUESTS

    def __init__(self, limit: str, retry_after: int) -> None:
        super().__init__(f"this API key may {limit}", retry_after)


class AtCapacity(TryLater):
    """Every slot is taken."""

    code = "at-capacity"
    title = "All conversations are taken"

    def __init__(self, slots: int, retry_after: int) -> None:
        super().__init__(f"all {slots} conversations are taken", retry_after)


class UploadBudgetExceeded(TryLater):
    """The request bodies in flight, together with this one, exceed the configured total."""

    code = "upload-budget-exceeded"
    title = "Too many bytes are being uploaded"

    def __init__(self, budget: int, retry_after: int) -> None:
        super().__init__(f"request bodies in flight would exceed {budget} bytes", retry_after)


class Draining(TryLater):
    """The server accepts no new conversations because it is about to stop."""

    code = "draining"
    title = "The server is shutting down"
    grpc_status = "UNAVAILABLE"
    close_code = 1012
    end_reason = "drained"

    def __init__(self, retry_after: int) -> None:
        super().__init__("this server is shutting down and takes no new conversations", retry_after)


class EngineUnavailable(GatewayError):
    """Triton cannot be reached, is not ready, or no longer holds the conversation's state."""

    code = "engine-unavailable"
    title = "The models are not available"
    http_status = HTTPStatus.SERVICE_UNAVAILABLE
    grpc_status = "UNAVAILABLE"
    end_reason = "engine"
    retriable = True


class EngineError(GatewayError):
    """Triton refused or failed a request."""

    code = "engine-error"
    title = "The models failed"
    http_status = HTTPStatus.BAD_GATEWAY
    end_reason = "engine"


class RepositoryError(GatewayError):
    """The models folder is not a usable built repository."""


class NameNotAllowed(GatewayError):
    """The voice name is not valid, or the voice cannot be removed."""


class NameTaken(GatewayError):
    """A voice of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a voice named {name} already; --force replaces it")
