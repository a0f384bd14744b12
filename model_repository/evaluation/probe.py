"""A built graph with values inside it as further outputs, and its state in place.

The graph is edited in memory; its weights stay in the file beside it, which ONNX Runtime maps, so that a probe takes as
much memory as the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.serving.session import session_options
from model_repository.serving.turns import Array

_DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class Probe:
    """A session of one row that also answers the values `names` of the graph."""

    def __init__(self, model: Path, graph: onnx.ModelProto, names: Sequence[str]) -> None:
        """`graph` is `model`, perhaps edited. Raises `EvaluationError` if it has no value of one of the names."""
        made = {output for node in graph.graph.node for output in node.output}
        for name in names:
            if name not in made:
                raise EvaluationError(f"{model} has no value {name!r}: it was built by another version, build it again")
            graph.graph.output.append(onnx.ValueInfoProto(name=name))
        options = session_options(model)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
        self._session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.shapes = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        self._names = list(names)
        states = {
            node.name: np.zeros((1, *node.shape[1:]), _DTYPES[node.type])
            for node in self._session.get_inputs()
            if node.name.startswith(("cache.", "state."))
        }
        self._states = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in states.items()}
        # `NAME.next` and its like are bound to the memory of state NAME.
        of_states = {node.name: node.name.rpartition(".")[0] for node in self._session.get_outputs()}
        self._updated = {output: state for output, state in of_states.items() if state in states}

    def run(self, **feeds: Array) -> dict[str, NDArray[np.float32]]:
        """One run; all feeds with their batch dimension, which is 1. The values asked for, float32, without it."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        for name, state in self._states.items():
            binding.bind_ortvalue_input(name, state)
        for output, name in self._updated.items():
            binding.bind_ortvalue_output(output, self._states[name])
        for name in self._names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()[len(self._updated) :]
        return {name: value.numpy()[0].astype(np.float32) for name, value in zip(self._names, values, strict=True)}


def load(model: Path) -> onnx.ModelProto:
    """The graph without its weights."""
    return onnx.load(str(model), load_external_data=False)


def force_codes(graph: onnx.ModelProto, steps: int) -> list[str]:
    """Make each depth step follow a given token instead of the one drawn by the step before: inputs `forced.0`,
    `forced.1`, … [rows] int64, whose names are returned. The drawn tokens still make the output `codes`.
    """
    nodes = graph.graph.node
    maker = {output: node for node in nodes for output in node.output}
    forced = []
    for step, gathered in enumerate(maker["codes"].input[: steps - 1]):
        token = maker[gathered].input[0]
        forced.append(f"forced.{step}")
        graph.graph.input.append(onnx.helper.make_tensor_value_info(forced[-1], onnx.TensorProto.INT64, ["rows"]))
        for node in nodes:
            if gathered not in node.output:
                for index, name in enumerate(node.input):
                    if name == token:
                        node.input[index] = forced[-1]
    return forced
