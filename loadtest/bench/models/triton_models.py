"""Call the four models of a Triton directly, whole batches at a time, without the gateway. Blocking calls.

A batch is one request per model: `members` [1, B, 2] names each conversation's row and key, every other input is
[1, B, ...]. A conversation's sequence begins with a request of its own, whose answer states its row.
"""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STATEFUL = ("mimi_encoder", "temporal", "mimi_decoder")
TIMEOUT_S = 1800.0
"""A slow model is a result, not an error."""

_CHUNK = 128
_DTYPES = {"FP32": np.float32, "INT64": np.int64}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_keys = count(1)


@dataclass
class Conversation:
    """Its sequence id and key, and its row in each stateful model."""

    key: int = field(default_factory=lambda: next(_keys))
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def sequence_id(self) -> str:
        return f"bench-{self.key}"


class TritonModels:
    """The models of the Triton at `address` (HOST:PORT of its HTTP service). Raises RuntimeError for a failed call."""

    def __init__(self, address: str, frame_size: int, codebooks: int) -> None:
        self._connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=TIMEOUT_S)
        self._empty = {
            "mimi_encoder": {"pcm": np.zeros(frame_size, np.float32)},
            "temporal": {"columns": np.zeros((1, 17), np.int64), **sampling(0, 0, 1, 0.0)},
            "mimi_decoder": {"codes": np.zeros(codebooks, np.int64)},
        }

    def open(self) -> Conversation:
        """Take a row in each stateful model."""
        conversation = Conversation()
        for model in STATEFUL:
            # Row -1: there is nothing to be done yet.
            answer = self._call(
                model, {**self._empty[model], "members": np.array([-1, conversation.key])}, conversation, start=True
            )
            conversation.rows[model] = int(answer["row"].ravel()[0])
        return conversation

    def close(self, conversation: Conversation) -> None:
        """Give the rows back."""
        for model in STATEFUL:
            self._call(
                model, {**self._empty[model], "members": np.array([0, conversation.key])}, conversation, end=True
            )

    def disconnect(self) -> None:
        """Close the connection."""
        self._connection.close()

    def prefill(self, conversation: Conversation, columns: Array, sampler: Mapping[str, Array]) -> int:
        """Process `columns` [S, 17], all but the last from the model's cache if possible; the number from the cache."""
        prefix, last = columns[:-1], columns[-1:]
        digest = hashlib.sha256(np.ascontiguousarray(prefix).tobytes())
        digest.update(np.int64(0).tobytes())

        def call(at: int, some: Array) -> Mapping[str, Array]:
            mark = np.concatenate([np.array([at, len(prefix)]), np.frombuffer(digest.digest(), np.int64)])
            inputs = {"columns": some, "prefix": mark, **sampler, "members": self._member("temporal", conversation)}
            return self._call("temporal", inputs, conversation)

        if "hidden" in call(len(prefix), last):
            return len(prefix)
        for at in range(0, len(prefix), _CHUNK):
            call(at, prefix[at : at + _CHUNK])
        self.batch("temporal", [conversation], {"columns": last[None], **{k: v[None] for k, v in sampler.items()}})
        return 0

    def batch(self, model: str, conversations: Sequence[Conversation], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a stateful `model` once for all; `inputs` and outputs are [B, ...]."""
        members = np.stack([self._member(model, conversation) for conversation in conversations])
        # On the sequence of the lowest row: Triton adds a copy of the request for each row below.
        carrier = min(conversations, key=lambda conversation: conversation.rows[model])
        answer = self._request(model, {**inputs, "members": members}, carrier)
        return {name: array[0] for name, array in answer.items()}

    def depformer(self, inputs: Mapping[str, Array]) -> Array:
        """Agent codes [B, 8] of `inputs` [B, ...]."""
        return self._request("depformer", inputs, None)["codes"]

    def _member(self, model: str, conversation: Conversation) -> Array:
        return np.array([conversation.rows[model], conversation.key])

    def _call(
        self, model: str, inputs: Mapping[str, Array], conversation: Conversation, **flags: bool
    ) -> dict[str, Array]:
        """A request of one conversation."""
        return self._request(model, {name: array[None] for name, array in inputs.items()}, conversation, **flags)

    def _request(
        self,
        model: str,
        inputs: Mapping[str, Array],
        carrier: Conversation | None,
        *,
        start: bool = False,
        end: bool = False,
    ) -> dict[str, Array]:
        parameters: dict[str, Any] = {"binary_data_output": True}
        if carrier is not None:
            parameters |= {"sequence_id": carrier.sequence_id, "sequence_start": start, "sequence_end": end}
            inputs = {name: array[None] for name, array in inputs.items()}
        tensors = [
            {
                "name": name,
                "datatype": _NAMES[array.dtype],
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ]
        header = json.dumps({"parameters": parameters, "inputs": tensors}).encode()
        body = b"".join([header, *(np.ascontiguousarray(array).tobytes() for array in inputs.values())])
        length = {"Inference-Header-Content-Length": str(len(header))}
        self._connection.request("POST", f"/v2/models/{model}/infer", body, length)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{model}: status {response.status}: {content[:300]!r}")
        return _outputs(content, int(response.headers.get("Inference-Header-Content-Length", len(content))))


def sampling(seed: int, position: int, top_k: int, temperature: float) -> dict[str, Array]:
    """The sampling inputs of one conversation."""
    return {
        "sampler": np.array([seed, position, top_k], np.int64),
        "temperature": np.array([temperature], np.float32),
    }


def _outputs(content: bytes, header: int) -> dict[str, Array]:
    found = {}
    at = header
    for output in json.loads(content[:header]).get("outputs", ()):
        size = output["parameters"]["binary_data_size"]
        array = np.frombuffer(content[at : at + size], _DTYPES[output["datatype"]])
        found[output["name"]] = array.reshape(output["shape"])
        at += size
    return found
