"""An HTTP server with Triton's protocol that answers every model the same and records its requests.

As the models do, it answers each member of a request, reports a sequence's row, and keeps prompts that were fed whole.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

DTYPES = {"FP32": np.float32, "INT64": np.int64}
OUTPUTS = {
    "mimi_encoder": {"codes": ("INT64", np.arange(8))},
    # Not in the order of the models' outputs: they are found by name.
    "temporal": {"text_token": ("INT64", [17]), "hidden": ("FP32", np.arange(32) / 2)},
    "depformer": {"codes": ("INT64", np.arange(8, 16))},
    "mimi_decoder": {"pcm": ("FP32", np.linspace(-1, 1, 1920))},
}


class Refusal(Exception):  # noqa: N818
    """Answered with a status and a body."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status


class Server:
    """Answers every model and keeps the requests."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.not_ready: set[str] = set()
        self.close_after_answer = False
        self.before: Callable[[], Awaitable[None]] | None = None
        self.connections: set[asyncio.StreamWriter] = set()
        self.prefixes: set[bytes] = set()
        self.rows: dict[str, list[str]] = {}
        """By model, the sequences it has seen; the index is the row."""

    def asked(self, model: str) -> list[dict[str, Any]]:
        """Requests to `model`, in order."""
        return [call for call in self.calls if call["model"] == model]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ") for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = head[0].split()[1]
                try:
                    status, extra, answer = 200, "", b""
                    if path.endswith("/ready"):
                        name = "server" if "health" in path else path.split("/")[3]
                        status = 400 if name in self.not_ready else 200
                    else:
                        size = int(headers["inference-header-content-length"])
                        extra, answer = await self.infer(path.split("/")[3], json.loads(body[:size]), body[size:])
                except Refusal as refusal:
                    status, answer = refusal.status, json.dumps({"error": str(refusal)}).encode()
                # In pieces, as a network may deliver it.
                extra += "Connection: close\r\n" if self.close_after_answer else ""
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(answer)}\r\n{extra}".encode())
                await asyncio.sleep(0)
                writer.write(b"\r\n" + answer[:7])
                await writer.drain()
                writer.write(answer[7:])
                if self.close_after_answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def infer(self, model: str, header: dict[str, Any], tensors: bytes) -> tuple[str, bytes]:
        if self.before is not None:
            await self.before()
        parameters = header["parameters"]
        assert parameters["binary_data_output"] is True
        arrays, start = {}, 0
        for tensor in header["inputs"]:
            stop = start + tensor["parameters"]["binary_data_size"]
            array = np.frombuffer(tensors[start:stop], DTYPES[tensor["datatype"]])
            arrays[tensor["name"]] = array.reshape(tensor["shape"])
            start = stop
        assert start == len(tensors)
        self.calls.append(
            {
                "model": model,
                "id": parameters.get("sequence_id"),
                "start": parameters.get("sequence_start"),
                "end": parameters.get("sequence_end"),
                **arrays,
            }
        )
        outputs, raw = [], b""
        if not parameters.get("sequence_end"):
            shape = (len(arrays["hidden"]),) if model == "depformer" else (1, arrays["members"].shape[1])
            begins = parameters.get("sequence_start") and arrays["members"][0, 0, 0] < 0
            for name, (datatype, value) in ({} if begins else self.progress(arrays) or OUTPUTS[model]).items():
                value = np.asarray(value, DTYPES[datatype])
                # Each member gets an answer of its own.
                array = value + 8 * np.arange(shape[-1], dtype=value.dtype).reshape(*shape, 1)
                raw += self.put(outputs, name, datatype, array)
            if model != "depformer":
                sequences = self.rows.setdefault(model, [])
                if parameters["sequence_start"]:
                    if parameters["sequence_id"] not in sequences:
                        sequences.append(parameters["sequence_id"])
                    row = sequences.index(parameters["sequence_id"])
                    raw += self.put(outputs, "row", "INT64", np.array([[row]]))
        answer = json.dumps({"model_name": model, "outputs": outputs}).encode()
        extra = f"Inference-Header-Content-Length: {len(answer)}\r\n" if raw else ""
        return extra, answer + raw

    @staticmethod
    def put(outputs: list[dict[str, Any]], name: str, datatype: str, array: np.ndarray) -> bytes:
        """Describe one more output; its bytes."""
        described = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        outputs.append(described | {"parameters": {"binary_data_size": array.nbytes}})
        return array.tobytes()

    def progress(self, arrays: dict[str, Any]) -> dict[str, Any] | None:
        """Answer of the temporal model to a chunk of a prompt, and where it does not have the prompt."""
        if "prefix" not in arrays:
            return None
        (at, columns, *_), digest = arrays["prefix"][0, 0], arrays["prefix"][0, 0, 2:].tobytes()
        if at == columns:
            return None if digest in self.prefixes else {"progress": ("INT64", [0, 5])}
        at += arrays["columns"].shape[2] + (arrays["embeddings"].shape[2] if "embeddings" in arrays else 0)
        if at == columns:
            self.prefixes.add(digest)
        return {"progress": ("INT64", [at, 1000])}

    async def listen(self, port: int = 0) -> tuple[asyncio.Server, int]:
        listening = await asyncio.start_server(self.serve, "127.0.0.1", port)
        return listening, listening.sockets[0].getsockname()[1]

    async def stop(self, listening: asyncio.Server) -> None:
        listening.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0.01)
