"""Everything a caller can be told about what went wrong; each face maps this tree once to its own codes.

GatewayError
├── InvalidRequest             the request itself must change; `field` names the part at fault
│   ├── UnknownVoice           no preset voice of that name
│   ├── UnknownSystemPrompt    no preset prompt of that name
│   ├── PromptTooLong          the text prompt has more tokens than the model's context
│   └── AudioError             empty, corrupt, too long, or otherwise unusable audio
├── MalformedBody              the body cannot be parsed at all
├── UnsupportedMediaType       the body is of a kind this face does not read
├── PayloadTooLarge            the body is bigger than the operator allows
├── NotAllowed                 the operator has not switched this feature on
├── Unauthorized               no API key, or one that is not known
├── ConversationBusy           a turn of that conversation is still under way
├── TooManyForKey              this key already holds as many conversations as it may; `retry_after` as below
├── UnknownConversation        no kept conversation of that id
├── AtCapacity                 every slot is taken; `retry_after` says when to come back
├── Draining                   the server is about to stop; `retry_after` as above
├── EngineUnavailable          Triton cannot be reached, is not ready, or lost the conversation
├── EngineError                Triton answered with an error
├── RepositoryError            the folder to serve is not a usable built repository
├── NameNotAllowed             a voice may not be called so, or not be removed
└── NameTaken                  there is a voice of that name already
"""

# ruff: noqa: N818 (the names say what is the matter, and all of them are errors)

from __future__ import annotations

from collections.abc import Iterable


class GatewayError(Exception):
    """Base of the tree; the message is one line made for people."""

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(GatewayError):
    """The request cannot be served as it stands; `field` is the part at fault, if it is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownVoice(InvalidRequest):
    """No preset voice of that name; the message lists those there are."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no voice named {name!r}; there are: {', '.join(known) or 'none'}", field="voice")


class UnknownSystemPrompt(InvalidRequest):
    """No preset prompt of that name; the message lists those there are."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no system prompt named {name!r}; there are: {', '.join(known)}", field="system_prompt")


class PromptTooLong(InvalidRequest):
    """The text prompt alone would not fit the model's context."""

    def __init__(self, tokens: int, context: int) -> None:
        super().__init__(
            f"the text prompt has {tokens} tokens, more than the model's context of {context}", field="text_prompt"
        )


class AudioError(InvalidRequest):
    """Audio that cannot be used; the message says what was expected and what came."""

    def __init__(self, message: str, field: str = "audio") -> None:
        super().__init__(message, field=field)


class MalformedBody(GatewayError):
    """The body is not what its content type says."""


class UnsupportedMediaType(GatewayError):
    """The body's content type is not one this face reads."""


class PayloadTooLarge(GatewayError):
    """The body is larger than the operator allows."""


class NotAllowed(GatewayError):
    """The operator has not switched this feature on."""


class Unauthorized(GatewayError):
    """No API key where one is needed, or one that is not known; which of the two is not told."""


class UnknownConversation(GatewayError):
    """There is no kept conversation of that id: never was, has ended, or is another caller's."""


class ConversationBusy(GatewayError):
    """A conversation takes one turn at a time."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"a turn of conversation {conversation_id!r} is still under way; wait for its answer")


class TryLater(GatewayError):
    """Refused for now. `retry_after`: seconds after which trying again makes sense."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(f"{message}; try again in {retry_after} s")
        self.retry_after = retry_after


class TooManyForKey(TryLater):
    """This API key's conversations are all taken."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"this API key may hold {limit} conversations at once, and does", retry_after)


class Draining(TryLater):
    """The server takes no new conversations because it is about to stop."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("this server is shutting down and takes no new conversations", retry_after)


class AtCapacity(TryLater):
    """Every slot is taken."""

    def __init__(self, slots: int, retry_after: int) -> None:
        super().__init__(f"all {slots} conversations are taken", retry_after)


class EngineUnavailable(GatewayError):
    """Triton cannot be reached, is not ready, or no longer holds the conversation's state."""


class EngineError(GatewayError):
    """Triton refused or failed a call for a reason of its own."""


class RepositoryError(GatewayError):
    """The models folder is not a usable built repository."""


class NameNotAllowed(GatewayError):
    """A voice may not be called so, or not be removed."""


class NameTaken(GatewayError):
    """There is a voice of that name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is a voice named {name} already; --force replaces it")
