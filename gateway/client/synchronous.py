"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Unpack

import httpx
import numpy.typing as npt
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from gateway.client.answers import Answer, LiveParams, RespondParams
from gateway.client.events import Ended, Event, Ready
from gateway.client.http import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    ClientError,
    Retry,
    ServerBusyError,
    answer_of,
    json_object,
    options,
    problem,
    refusal,
    respond_request,
    transport_errors,
)
from gateway.client.live import (
    END,
    NEW_TOKEN,
    RECONNECT_S,
    MessageReader,
    PcmFormat,
    connect_options,
    connection_errors,
    encode,
    resumed_params,
    start_message,
)


class Client:
    """A connection to one server; a context manager.

    Args:
        url: address of the server, for example `http://127.0.0.1:8998`.
        verify: whether the certificate of an https server must be trusted.
        api_key: API key that the requests carry.
        read_timeout: seconds without data after which a request fails.
        wait_when_full: seconds for which to try again while every slot is taken. 0: raise ServerBusyError.

    All methods raise ClientError if the server is unreachable or refuses the request.
    """

    def __init__(
        self,
        url: str,
        *,
        verify: bool = True,
        api_key: str | None = None,
        read_timeout: float = READ_TIMEOUT_S,
        wait_when_full: float = 0.0,
    ) -> None:
        self.url = url.rstrip("/")
        self._verify = verify
        self._api_key = api_key
        self._wait_when_full = wait_when_full
        with transport_errors(self.url):
            self._http = httpx.Client(**options(self.url, verify, api_key, read_timeout))

    def respond(self, audio: bytes, **params: Unpack[RespondParams]) -> Answer:
        """Send a recording and return the answer: `POST /v1/respond`.

        Args:
            audio: a file in any format that libsndfile reads.
            params: voice, prompt, sampling and others; see RespondParams.
        """
        with self._respond(audio, params, streams=False) as response:
            response.read()
            return answer_of(response)

    def stream(self, audio: bytes, **params: Unpack[RespondParams]) -> Iterator[bytes]:
        """As `respond`, and yield a WAV in pieces as the server computes it."""
        with self._respond(audio, params, streams=True) as response:
            yield from response.iter_bytes()

    @contextmanager
    def converse(
        self, *, audio_format: PcmFormat = "pcm_s16le", sample_rate: int = 24_000, **params: Unpack[LiveParams]
    ) -> Iterator[Conversation]:
        """Hold a live conversation: the WebSocket `/v1/converse`. The context is entered when the agent is ready.

        Args:
            audio_format: of both directions on the wire.
            sample_rate: of the user's audio in Hz. The agent's is that of `ready`.
            params: voice, prompt and sampling; see LiveParams.
        """
        with ExitStack() as stack:
            yield self._connect(stack, params, audio_format, sample_rate)

    def voices(self) -> dict[str, Any]:
        """Return the voice presets: `GET /v1/voices`."""
        with transport_errors(self.url):
            return json_object(self._http.get("/v1/voices"))

    def ready(self) -> str | None:
        """Return None if the server is ready, else the reason in one line: `GET /readyz`."""
        try:
            with transport_errors(self.url):
                response = self._http.get("/readyz", timeout=CONNECT_TIMEOUT_S)
        except ClientError as error:
            return error.message
        return None if response.is_success else problem(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, stack: ExitStack, params: LiveParams, audio_format: PcmFormat, sample_rate: int) -> Conversation:
        """Connect, start a conversation and wait until it is ready. `stack` closes its connections."""
        retry = Retry(self._wait_when_full)
        target = partial(connect_options, self.url, self._verify, self._api_key)

        def dial(stack: ExitStack, token: str, params: LiveParams) -> tuple[ClientConnection, str | bytes]:
            socket = stack.enter_context(connect(**target(token)))
            socket.send(start_message(params, audio_format, sample_rate))
            return socket, socket.recv()

        while True:
            reader = MessageReader(audio_format)
            with ExitStack() as attempt:
                try:
                    with connection_errors(self.url):
                        socket, message = dial(attempt, NEW_TOKEN, params)
                        ready = reader.read(message)
                except ServerBusyError as busy:
                    delay = retry.delay(busy)
                else:
                    if not isinstance(ready, Ready):
                        raise ClientError(f"expected `ready` first, got {ready}")
                    stack.push(attempt.pop_all())

                    def reconnect(token: str) -> tuple[ClientConnection, str | bytes]:
                        return dial(stack, token, resumed_params(params))

                    return Conversation(socket, reader, ready, audio_format, reconnect)
            time.sleep(delay)

    @contextmanager
    def _respond(self, audio: bytes, params: RespondParams, *, streams: bool) -> Iterator[httpx.Response]:
        retry = Retry(self._wait_when_full)
        with transport_errors(self.url):
            while True:
                with self._http.stream(**respond_request(audio, params, streams=streams)) as response:
                    if response.is_success:
                        yield response
                        return
                    response.read()
                error = refusal(response)
                if not isinstance(error, ServerBusyError):
                    raise error
                time.sleep(retry.delay(error))


class Conversation:
    """A live conversation: send what the user says, iterate over what the agent does.

    `send` and `end` may be called in one thread while another one iterates. ready: the resolved parameters. Iteration
    yields AgentText, AgentAudio, Stats, Warning and, last, Ended. It raises ClientError if the conversation fails.
    If the connection is lost and the server allows it, iteration resumes the conversation and yields Ready again.
    """

    def __init__(
        self,
        socket: ClientConnection,
        reader: MessageReader,
        ready: Ready,
        audio_format: PcmFormat,
        reconnect: Callable[[str], tuple[ClientConnection, str | bytes]],
    ) -> None:
        """`reconnect`: connects to resume the conversation with a token, and returns the first message."""
        self.ready = ready
        self._reconnect = reconnect
        self._socket = socket
        self._reader = reader
        self._format = audio_format
        self._over = False
        self._ended = False

    def send(self, pcm: npt.ArrayLike) -> None:
        """Send samples [T], float within ±1, at the rate given to `converse`: as they are recorded, any number.

        They are dropped if the server has ended the conversation, iteration says why, and while a lost connection is
        replaced.
        """
        with suppress(ConnectionClosed):
            self._socket.send(encode(pcm, self._format))

    def end(self) -> None:
        """End the user's audio. The agent's remaining frames and Ended follow."""
        self._ended = True
        with suppress(ConnectionClosed):
            self._socket.send(END)

    def __iter__(self) -> Conversation:
        return self

    def __next__(self) -> Event:
        if self._over:
            raise StopIteration
        with connection_errors("the server"):
            try:
                message = self._socket.recv()
            except ConnectionClosed as lost:
                message = self._resume(lost)
        event = self._reader.read(message)
        self._over = isinstance(event, Ended)
        return event

    def _resume(self, lost: ConnectionClosed) -> str | bytes:
        """Resume the conversation over a new connection; return its first message. Raises `lost`."""
        if self._reader.resume is None:
            raise lost
        token, deadline = self._reader.resume.token, self._reader.resume.deadline(lost)
        while True:
            try:
                self._socket, message = self._reconnect(token)
            except (OSError, WebSocketException):
                if time.monotonic() > deadline:
                    raise lost from None
                time.sleep(RECONNECT_S)
            else:
                if self._ended:
                    self.end()
                return message
