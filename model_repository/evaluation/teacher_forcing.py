"""Teacher forcing: run a repository over the tokens of a given conversation, and record its outputs at every step.

The models are those that are served. Their graphs have further outputs, and the depformer takes the given tokens in
place of those it samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import AGENT, TEXT, Prompt, greedy
from model_repository.evaluation.repository import Repository
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.device import CudaMemory
from model_repository.serving.device_session import DeviceSession
from model_repository.serving.execution_target import ExecutionTarget
from model_repository.serving.row_request import Array, run_one
from model_repository.serving.session import Session, StatefulSession
from model_repository.serving.temporal import TemporalModel


@dataclass(frozen=True, eq=False)
class Record:
    """Outputs of a repository at T steps whose successors are given.

    hidden: [T, dim] float32, after the final norm. text_logits: [T, text_card] float32, for the next step's text.
    audio_logits: [T, 8, card] float32, for the next step's agent codebooks, each given those before it.
    layers: [K, L, dim] float32, the residual stream after each layer at K of the steps.
    """

    hidden: NDArray[np.float32]
    text_logits: NDArray[np.float32]
    audio_logits: NDArray[np.float32]
    layers: NDArray[np.float32]

    def save(self, folder: Path) -> None:
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Mapped, not read."""
        return cls(**{field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r") for field in fields(cls)})


def teacher_force(
    repository: Repository,
    prompt: Prompt,
    columns: NDArray[np.int64],
    layers_at: Sequence[int],
    done: Callable[[float], None],
) -> Record:
    """Run the prompt, and then the steps of columns [T + 1, 17] but the last.

    `layers_at` are indices of steps; `done` is called with the fraction that is done. Raises `EvaluationError` if the
    graphs lack a value.
    """
    device, manifest = repository.device(), repository.manifest
    cards, codebooks = (manifest["text_card"], manifest["card"]), manifest["codebooks"]
    layers = [f"layers.{index}.out" for index in range(repository.layers)]
    logits = [f"logits.{step}" for step in range(codebooks)]

    def edit_temporal(graph: onnx.GraphProto) -> None:
        _add_outputs(graph, ["text_logits"], manifest["text_card"])
        _add_last_columns(graph, layers, manifest["dim"])

    def edit_depformer(graph: onnx.GraphProto) -> None:
        _add_outputs(graph, logits, manifest["card"])
        _force_codes(graph, codebooks)

    window = manifest["context"] - 1
    temporal = TemporalModel(repository.graph("temporal"), 1, *cards, window, _edited(edit_temporal, device))
    depformer = DepformerModel(repository.graph("depformer"), *cards, 1, _edited(edit_depformer, device))
    temporal.slots.begin(0)
    first: dict[str, Array] = {"columns": prompt.columns, "embeddings": prompt.embeddings}
    run_one(temporal, 0, first | greedy(prompt.length))
    count = len(columns) - 1
    hidden, text, audio = [], [], []
    residuals = np.zeros((len(layers_at), len(layers), manifest["dim"]), np.float32)
    for index in range(count):
        sampling = greedy(prompt.length + index + 1)
        outputs = run_one(temporal, 0, {"columns": columns[index][None]} | sampling)
        results = temporal.session.results
        hidden.append(outputs["hidden"])
        text.append(results["text_logits"][0].copy())
        if index in layers_at:
            residuals[list(layers_at).index(index)] = [results[f"{name}.last"][0] for name in layers]
        for step, code in enumerate(columns[index + 1][AGENT][:-1]):
            depformer.session.feeds[f"forced.{step}"][0] = code
        given: dict[str, Array] = {"hidden": outputs["hidden"], "text_token": columns[index + 1, [TEXT]]}
        run_one(depformer, 0, given | sampling)
        audio.append(np.stack([depformer.session.results[name][0] for name in logits]))
        done((index + 1) / count)
    return Record(np.stack(hidden), np.stack(text), np.stack(audio), residuals)


def _edited(edit: Callable[[onnx.GraphProto], None], device: CudaMemory | None) -> ExecutionTarget:
    """Sessions of edited graphs, on the CPU where `device` is None."""

    def open_session(model: Path, slots: int) -> Session:
        loaded = onnx.load(model, load_external_data=False)
        edit(loaded.graph)
        graph = loaded.SerializeToString()
        return StatefulSession(model, slots, graph) if device is None else DeviceSession(model, slots, device, graph)

    return open_session


def _add_outputs(graph: onnx.GraphProto, names: Sequence[str], width: int) -> None:
    """Make values [rows, width] float32 outputs."""
    made = {output for node in graph.node for output in node.output}
    for name in names:
        if name not in made:
            raise EvaluationError(f"{graph.name} has no value {name!r}: built by another version, build it again")
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", width]))


def _add_last_columns(graph: onnx.GraphProto, names: Sequence[str], width: int) -> None:
    """Make the last columns of values [rows, columns, width] outputs, called NAME.last."""
    graph.initializer.append(onnx.numpy_helper.from_array(np.array(-1), "last"))
    _add_outputs(graph, names, width)
    for output in graph.output[-len(names) :]:
        graph.node.append(onnx.helper.make_node("Gather", [output.name, "last"], [f"{output.name}.last"], axis=1))
        output.name += ".last"


def _force_codes(graph: onnx.GraphProto, steps: int) -> None:
    """Make each depth step follow a given token instead of the one sampled by the step before: inputs `forced.0`,
    `forced.1`, … [rows] int64. The sampled tokens still make the output `codes`.
    """
    maker = {output: node for node in graph.node for output in node.output}
    for step, gathered in enumerate(maker["codes"].input[: steps - 1]):
        token, forced = maker[gathered].input[0], f"forced.{step}"
        graph.input.append(onnx.helper.make_tensor_value_info(forced, onnx.TensorProto.INT64, ["rows"]))
        for node in graph.node:
            if gathered not in node.output:
                for index, name in enumerate(node.input):
                    if name == token:
                        node.input[index] = forced
