"""Client of Triton's HTTP endpoint: one request at a time on each persistent connection, tensors as raw bytes.

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

    async def request(self, request: Sequence[bytes], deadline: float) -> Outputs:
        """Send a request and return the tensors of the answer, each with its batch dimensions. `deadline`: seconds.

        Raises TritonRejected for any status but 200, and TritonUnreachable.
        """
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
                headers = dict([line.split(b": ", 1) for line in head[:-4].split(b"\r\n")[1:]])
                body = await reader.readexactly(int(headers[b"content-length"]))
            status, json_length = int(head[9:12]), int(headers.get(b"inference-header-content-length", 0))
            outputs: Outputs = {}
            for name, dtype, shape, size, offset in _output_layout(body[:json_length]) if json_length else ():
                outputs[name] = np.frombuffer(body, dtype, size, json_length + offset).reshape(shape)
        except TimeoutError:
            raise TritonUnreachable(f"no answer within {deadline:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise TritonUnreachable(f"the connection was lost: {error}") from None
        except OSError as error:
            raise TritonUnreachable(error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, asyncio.LimitOverrunError) as error:
            raise TritonUnreachable(f"not an answer of Triton: {error}") from None
        else:
            if headers.get(b"connection") != b"close" and not reader.at_eof():
                self._idle.append((reader, writer))
                writer = None
        finally:
            # Not reused: data that still arrives on it belongs to no request.
            if writer is not None:
                writer.transport.abort()
        if status != 200:
            raise TritonRejected(status, _error_message(body))
        return outputs

    async def close(self) -> None:
        """Close the idle connections. A call in flight closes its own."""
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()
        # An aborted transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)


def get(path: str) -> list[bytes]:
    """A GET request."""
    return [b"GET %s HTTP/1.1\r\nHost: triton\r\n\r\n" % path.encode()]


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
