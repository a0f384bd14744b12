"""Which operators ONNX Runtime computes on CUDA, and what a graph asks for.

`KERNELS` lists, per operator, types of its first operand that onnxruntime-gpu 1.31.1 placed on its CUDA provider, each
in a graph of one node with falling back to the CPU disabled; `docs/OperatorKernels.md` in its repository lists all
under `CUDAExecutionProvider`. Not there, and easy to fall for: ArgMax of integers, RandomUniform and
Multinomial, DynamicQuantizeMatMul, GroupQueryAttention of float32. If, Loop and Scan have kernels, but keep a session
from capturing CUDA graphs, as every node off the GPU does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import inliner

_ALL = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT64", "BOOL"})
_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})

KERNELS: dict[str, frozenset[str]] = {
    "Add": _FLOATS | {"INT64"},
    "And": frozenset({"BOOL"}),
    "ArgMin": frozenset({"FLOAT", "FLOAT16"}),
    "Attention": _FLOATS,
    "Cast": _ALL,
    "Concat": _ALL,
    "Cos": frozenset({"FLOAT"}),
    "Div": _FLOATS | {"INT64"},
    "Equal": frozenset({"FLOAT", "FLOAT16", "INT64", "BOOL"}),
    "Exp": _FLOATS,
    "Expand": _ALL,
    "Gather": _ALL,
    "GatherBlockQuantized": frozenset({"UINT8"}),
    "GatherElements": _ALL,
    "Gelu": _FLOATS,
    "Greater": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "GreaterOrEqual": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "LayerNormalization": _FLOATS,
    "Less": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "LessOrEqual": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "MatMul": _FLOATS,
    "MatMulNBits": _FLOATS,
    "Max": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "Min": frozenset({"FLOAT", "FLOAT16", "INT64"}),
    "Mod": frozenset({"INT64"}),
    "Mul": _FLOATS | {"INT64"},
    "Not": frozenset({"BOOL"}),
    "Or": frozenset({"BOOL"}),
    "RMSNormalization": frozenset({"FLOAT"}),
    "Range": frozenset({"FLOAT", "INT64"}),
    "ReduceSum": frozenset({"FLOAT", "FLOAT16"}),
    "Relu": _FLOATS,
    "Reshape": _ALL,
    "RotaryEmbedding": _FLOATS,
    "Sigmoid": _FLOATS,
    "Sin": frozenset({"FLOAT"}),
    "Slice": frozenset({"FLOAT", "INT64"}),
    "SkipSimplifiedLayerNormalization": _FLOATS,
    "Softmax": _FLOATS,
    "Split": _ALL,
    "Squeeze": _ALL,
    "Sub": _FLOATS | {"INT64"},
    "Sum": frozenset({"FLOAT"}),
    "TensorScatter": _FLOATS,
    "TopK": frozenset({"FLOAT"}),
    "Transpose": _ALL,
    "Unsqueeze": _ALL,
    "Where": frozenset({"BOOL"}),
}

_BOOLEAN = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"})

_TYPED_BY = {"Where": 1, "GatherBlockQuantized": 2}
"""By operator, the operand whose type its result has, where that is not the first."""


_CONSTANTS = {"value_float": "FLOAT", "value_ints": "INT64"}
"""Element types of constants in functions, by their attribute."""

_OF_OUR_OWN = [("personaplex", "Int8KvAttention")]
"""Operators that have a kernel of ours on CUDA; ONNX Runtime computes what the others are functions of."""


class Typed:
    """A graph's nodes with the element types of their operands."""

    def __init__(self, model: Path) -> None:
        read = onnx.load(model, load_external_data=False)
        graph = inliner.inline_selected_functions(read, _OF_OUR_OWN, exclude=True).graph
        constants = {node.output[0]: node.attribute[0] for node in graph.node if node.op_type == "Constant"}
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.inputs = {value.name: value for value in graph.input}
        self.weights = {*(tensor.name for tensor in graph.initializer), *constants}
        self._types = {name: _name(value.type.tensor_type.elem_type) for name, value in self.inputs.items()}
        self._types |= {tensor.name: _name(tensor.data_type) for tensor in graph.initializer}
        self._types |= {name: _CONSTANTS[attribute.name] for name, attribute in constants.items()}
        for node in self.nodes:
            for index, output in enumerate(node.output):
                if output:
                    self._types[output] = self._result(node, index)

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """Types of a node's operands, those left out not counted."""
        return [self._types[name] for name in node.input if name]

    def type_of(self, name: str) -> str:
        """Element type of a value."""
        return self._types[name]

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in operators)

    def _result(self, node: onnx.NodeProto, index: int) -> str:
        if node.op_type == "Cast":
            return next(_name(attribute.i) for attribute in node.attribute if attribute.name == "to")
        if node.op_type in _BOOLEAN:
            return "BOOL"
        if node.op_type == "Int8KvAttention" and index:
            return "INT8"
        if node.op_type == "ArgMin" or (node.op_type == "TopK" and index == 1):
            return "INT64"
        return self._types[node.input[_TYPED_BY.get(node.op_type, 0)]]


def _name(element: int) -> str:
    return onnx.TensorProto.DataType.Name(element)
