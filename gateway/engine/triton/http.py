"""Client of Triton's HTTP endpoint: one call at a time on each kept connection, tensors as raw bytes.

A batch makes four calls, one after the other, so a call's overhead is part of every frame's latency.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_HEAD_BYTES = 2**16

Outputs = dict[str, npt.NDArray[Any]]
"""Output tensors by name."""

_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype(np.float32), "INT64": np.dtype(np.int64)}


class TritonRejected(Exception):  # noqa: N818 (an expected outcome of a call)
    """Triton answered with an error: HTTP `status` and Triton's own message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class TritonUnreachable(Exception):  # noqa: N818
    """No usable answer: no connection, a lost one, a time-out, or bytes that are not Triton's."""


class TritonHttp:
    """Calls to the Triton at `address` (HOST:PORT of its HTTP endpoint), from one event loop."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._calls: set[asyncio.Task[tuple[int, int, bytes]]] = set()

    async def infer(self, request: Sequence[bytes], deadline: float) -> Outputs:
        """Output tensors of a request laid out by `request_head`, each with its batch dimensions. `deadline`: seconds.

        A call goes on when its caller is cancelled: a step that is cut in two would leave the sequence in an unknown
        state. Raises TritonRejected or TritonUnreachable.
        """
        call = asyncio.ensure_future(self._exchange(request, deadline))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        status, header_length, body = await asyncio.shield(call)
        if status != 200:
            raise TritonRejected(status, _error_message(body))
        try:
            layout = _output_layout(body[: header_length or len(body)])
            return {
                name: np.frombuffer(body, dtype, size, header_length + offset).reshape(shape)
                for name, dtype, shape, size, offset in layout
            }
        except (ValueError, KeyError, TypeError):
            raise TritonUnreachable("an answer that is not Triton's") from None

    async def get(self, path: str, deadline: float) -> bytes:
        """Body of a GET. Raises TritonRejected for any status but 200, and TritonUnreachable."""
        request = [b"GET %s HTTP/1.1\r\nHost: triton\r\n\r\n" % path.encode()]
        status, _, body = await self._exchange(request, deadline)
        if status != 200:
            raise TritonRejected(status, _error_message(body))
        return body

    async def close(self) -> None:
        """Close every connection; calls in flight fail."""
        for call in list(self._calls):
            call.cancel()
        if self._calls:
            await asyncio.wait(self._calls)
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()
        # An aborted transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)

    async def _exchange(self, request: Sequence[bytes], deadline: float) -> tuple[int, int, bytes]:
        """Status, length of the JSON before the tensors (0 if there are none), and body."""
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(deadline):
                while self._idle:
                    reader, writer = self._idle.pop()
                    if not reader.at_eof():
                        break
                    writer.transport.abort()
                else:
                    reader, writer = await asyncio.open_connection(self._host, self._port, limit=MAX_HEAD_BYTES)
                writer.writelines(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                status = int(head[9:12])
                headers = dict(line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:])
                body = await reader.readexactly(int(headers[b"content-length"]))
                header_length = int(headers.get(b"inference-header-content-length", 0))
        except TimeoutError:
            raise TritonUnreachable(f"no answer within {deadline:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise TritonUnreachable(f"the connection was lost: {error}") from None
        except OSError as error:
            raise TritonUnreachable(error.strerror or str(error)) from None
        except (ValueError, KeyError, asyncio.LimitOverrunError) as error:
            raise TritonUnreachable(f"not HTTP with a content length: {error}") from None
        else:
            if headers.get(b"connection") != b"close" and not reader.at_eof():
                self._idle.append((reader, writer))
                writer = None
            return status, header_length, body
        finally:
            # Not kept: what could still arrive on it belongs to no call.
            if writer is not None:
                writer.transport.abort()


@lru_cache(maxsize=1024)
def _output_layout(header: bytes) -> list[tuple[str, np.dtype[Any], tuple[int, ...], int, int]]:
    """Name, dtype, shape, number of values and offset in bytes of an answer's tensors. They repeat, so keep them."""
    layout, offset = [], 0
    for output in json.loads(header).get("outputs", []):
        dtype, shape = _DTYPES[output["datatype"]], tuple(output["shape"])
        size = output["parameters"]["binary_data_size"]
        layout.append((output["name"], dtype, shape, size // dtype.itemsize, offset))
        offset += size
    return layout


def _error_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")
