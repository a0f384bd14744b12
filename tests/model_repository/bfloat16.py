"""Graphs with bfloat16 on a CPU, which has no kernels for it: float32 operators whose results are rounded.

A kernel for bfloat16 computes in float32 and rounds its result once, and so do the nodes that are put in its place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.model_repository.cuda_kernels import Typed

_MOVING = frozenset({"Concat", "Gather", "Reshape", "Split", "Squeeze", "TensorScatter", "Unsqueeze"})
"""Operators whose results are elements of what they take."""


def emulate(model: Path, out: Path) -> None:
    """Write the graph `model` to `out` with float32 in place of bfloat16, rounded where it was."""
    typed, loaded = Typed(model), onnx.load(model)
    graph = loaded.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        rounded = [name for name in node.output if name and typed.type_of(name) == "BFLOAT16"]
        if node.op_type == "Cast" and not rounded and typed.operands(node) == ["BFLOAT16"]:
            node.op_type = "Identity"
            node.ClearField("attribute")
        nodes.append(node)
        if node.op_type == "Cast" and rounded:
            nodes.append(helper.make_node("Cast", [f"{rounded[0]}.16"], rounded, to=TensorProto.FLOAT))
            node.output[0] = f"{rounded[0]}.16"
        elif node.op_type not in _MOVING:
            for name in rounded:
                nodes.append(helper.make_node("Cast", [f"{name}.32"], [f"{name}.16"], to=TensorProto.BFLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}.16"], [name], to=TensorProto.FLOAT))
            results = [f"{name}.32" if name in rounded else name for name in node.output]
            node.output[:] = results
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    out.parent.mkdir(parents=True)
    onnx.save(loaded, out, save_as_external_data=True, location=f"{out.name}.data")
