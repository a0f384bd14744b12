"""A built graph with values inside it as further outputs, and its state in place.

The graph is edited in memory; its weights stay in the file beside it, which ONNX Runtime maps, so that a probe takes as
much memory as the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.serving.cpu import attention_kernels, session_options
from model_repository.serving.device import DeviceMemory
from model_repository.serving.row_request import Array


class Probe:
    """A session of one row that also answers the values `names` of the graph."""

    def __init__(
        self, model: Path, graph: onnx.ModelProto, names: Sequence[str], device: DeviceMemory | None = None
    ) -> None:
        """`graph` is `model`, perhaps edited; it runs on the CPU where `device` is None.

        Raises `EvaluationError` if it has no value of one of the names.
        """
        made = {output for node in graph.graph.node for output in node.output}
        self._outputs = [f"probed.{name}" for name in names]
        for name, output in zip(names, self._outputs, strict=True):
            if name not in made:
                raise EvaluationError(f"{model} has no value {name!r}: it was built by another version, build it again")
            # Whatever precision it has in there: NumPy does not know them all.
            graph.graph.node.append(onnx.helper.make_node("Cast", [name], [output], to=onnx.TensorProto.FLOAT))
            graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
        options = session_options(model)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
        providers = _providers(device)
        with attention_kernels(model):
            self._session = ort.InferenceSession(graph.SerializeToString(), options, providers=providers)
        self.shapes = {node.name: node.shape[1:] for node in self._session.get_inputs()}
        self._names = list(names)
        self._states = {
            node.name: _State.of(node, device)
            for node in graph.graph.input
            if node.name.startswith(("cache.", "state."))
        }
        # `NAME.next` and its like are bound to the memory of state NAME.
        of_states = {node.name: node.name.rpartition(".")[0] for node in self._session.get_outputs()}
        self._updated = {output: state for output, state in of_states.items() if state in self._states}
        if device is not None:
            device.synchronize()

    def run(self, **feeds: Array) -> dict[str, NDArray[np.float32]]:
        """One run; all feeds with their batch dimension, which is 1. The values asked for, float32, without it."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, state in self._states.items():
            binding.bind_input(name, *state.bound)
        for output, name in self._updated.items():
            binding.bind_output(output, *self._states[name].bound)
        for output in self._outputs:
            binding.bind_output(output, "cpu")
        self._session.run_with_iobinding(binding)
        values = binding.get_outputs()[len(self._updated) :]
        return {name: value.numpy()[0] for name, value in zip(self._names, values, strict=True)}


@dataclass(frozen=True)
class _State:
    """A row's state, zero at first; `bound` is what a binding is told, `memory` what must outlive it."""

    bound: tuple[str, int, int, list[int], int]
    memory: Any

    @classmethod
    def of(cls, node: onnx.ValueInfoProto, device: DeviceMemory | None) -> _State:
        """For a graph input [rows, …]."""
        tensor = node.type.tensor_type
        shape = [1, *(size.dim_value for size in tensor.shape.dim[1:])]
        array = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if device is None:
            return cls(("cpu", 0, tensor.elem_type, shape, array.ctypes.data), array)
        return cls((device.kind, device.index, tensor.elem_type, shape, device.allocate(array.nbytes)), device)


def _providers(device: DeviceMemory | None) -> list[Any]:
    """Without captured graphs, for what a probe answers comes to the host."""
    providers: dict[str, Mapping[str, str]] = {}
    for name, options in () if device is None else device.providers:
        providers[name] = {key: value for key, value in options.items() if key != "enable_cuda_graph"}
    return list((providers | {"CPUExecutionProvider": {}}).items())


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
