"""Repositories for CUDA: what their graphs ask a GPU for, and, on the CPU's kernels, what they compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from model_repository.build import build_repository
from model_repository.errors import BuildError
from model_repository.serving.row_request import BadInputError
from model_repository.temporal.graph import CUDA_TEXT_TOP_K
from model_repository.triton_config import MODELS
from model_repository.variants import CUDA_VARIANTS
from tests.conftest import GOLDEN, GoldenVariant
from tests.model_repository.bfloat16 import emulate
from tests.model_repository.cuda_kernels import KERNELS, Typed
from tests.model_repository.serving.conftest import Models, one, sampler

ACTIVATIONS = {"fp32": "FLOAT", "fp16": "FLOAT16"}
"""Of variants other than those with bfloat16."""

LEAST_COSINE = {"fp32": 0.999999, "fp16": 0.99999, "bf16": 0.99999, "int8": 0.99999, "int4": 0.9999, "mixed": 0.99999}
"""Of a model 32 wide with random weights."""


@pytest.fixture(scope="module", params=CUDA_VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def built(variant: str, golden_variant: GoldenVariant) -> Path:
    return golden_variant(variant, device="cuda")


@pytest.fixture(scope="module")
def emulated(built: Path, variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`built`, as far as the CPU needs it emulated."""
    return built if variant in ACTIVATIONS else on_cpu(built, tmp_path_factory.mktemp("emulated"))


def on_cpu(built: Path, repository: Path) -> Path:
    """`built`, with the operators that a CPU has in place of those for bfloat16."""
    shutil.copy(built / "manifest.json", repository)
    for name in ("temporal", "depformer"):
        emulate(*(folder / "triton" / name / "1" / "model.onnx" for folder in (built, repository)))
    return repository


@pytest.fixture(scope="module")
def graphs(built: Path) -> dict[str, Typed]:
    return {name: Typed(built / "triton" / name / "1" / "model.onnx") for name in MODELS}


def test_every_node_has_a_kernel_on_cuda(graphs: dict[str, Typed]):
    missing = {
        (name, node.op_type, graph.operands(node)[0])
        for name, graph in graphs.items()
        for node in graph.nodes
        if graph.operands(node)[0] not in KERNELS.get(node.op_type, ())
    }
    assert not missing


def test_shapes_follow_from_the_number_of_rows_and_columns(graphs: dict[str, Typed]):
    """And so may a run be captured: nothing depends on values, by control flow or as a shape."""
    for graph in graphs.values():
        for value in graph.inputs.values():
            first, *others = value.type.tensor_type.shape.dim
            assert first.dim_param == ("columns" if value.name == "offsets" else "rows")
            named = {size.dim_param for size in others if not size.HasField("dim_value")}
            assert named == ({"columns"} if value.name in ("columns", "embeddings") else set()), value.name
        assert not list(graph.of("If", "Loop", "Scan", "Shape", "NonZero"))
        sizes = {node.input[1] for node in graph.of("TopK", "Reshape", "Expand")}
        assert sizes <= graph.weights, "sizes are constants"


def test_products_and_attention_have_16_bits(graphs: dict[str, Typed], variant: str):
    expected = ACTIVATIONS.get(variant, "BFLOAT16")
    for name in ("temporal", "depformer"):
        graph = graphs[name]
        products = [node for node in graph.of("MatMul") if ".weight" in node.input[1] or "_weight" in node.input[1]]
        products += graph.of("MatMulNBits")
        attention = list(graph.of("Attention"))
        assert products
        assert attention or (name, variant) == ("depformer", "fp32")
        for node in products:
            operands = graph.operands(node)
            assert operands[0] == expected, node.input[1]
            assert operands[1:3] == ([expected] if node.op_type == "MatMul" else ["UINT8", expected])
        for node in attention:
            assert graph.operands(node)[:3] == [expected] * 3
        caches = {graph.operands(node)[0] for node in graph.of("TensorScatter")}
        assert caches <= {expected}


def test_no_weight_is_cast_and_float32_stays_where_it_matters(graphs: dict[str, Typed]):
    for name in ("temporal", "depformer"):
        graph = graphs[name]
        assert not [node.input[0] for node in graph.of("Cast") if node.input[0] in graph.weights]
        wide = ("RMSNormalization", "TopK", "Softmax", "Exp", "Div", "Sum")
        assert {graph.operands(node)[0] for node in graph.of(*wide)} == {"FLOAT"}
        residual = list(graph.of("Add", "SkipSimplifiedLayerNormalization"))
        assert {kind for node in residual for kind in graph.operands(node)} - {"INT64"} == {"FLOAT"}


def test_attention_may_be_flash_attention(graphs: dict[str, Typed]):
    """Straight on the cache, without a mask: filled slots of each row."""
    for node in graphs["temporal"].of("Attention"):
        query, key, value, mask, past_key, past_value, filled = node.input
        assert (mask, past_key, past_value) == ("", "", "")
        assert query
        assert filled
        assert {key, value} <= {scatter.output[0] for scatter in graphs["temporal"].of("TensorScatter")}
        assert {attribute.name: attribute.i for attribute in node.attribute}["is_causal"] == 1
    assert not list(graphs["temporal"].of("Transpose")), "heads are where the kernels take them"


@pytest.mark.parametrize("variant", LEAST_COSINE, indirect=True)
def test_hidden_states_stay_close_through_prefill_and_wrap(golden, emulated: Path, variant: str):
    assert mean_cosine(golden, Models(emulated, slots=4)) > LEAST_COSINE[variant]


def mean_cosine(golden, models: Models) -> float:
    """Of the hidden states after a chunk of 30 columns, and after each one from there on."""
    columns, hidden = golden["model_input"], golden["hidden"]
    position, cosines = 0, []
    for chunk in (columns[:30], *(columns[step : step + 1] for step in range(30, len(columns)))):
        start, position = position == 0, position + len(chunk)
        mine = one(models.temporal, 2, {"columns": chunk, **sampler(position)}, start=start)["hidden"]
        theirs = hidden[position - 1]
        cosines.append(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs))
    assert len(cosines) > models.window
    return float(np.mean(cosines))


@pytest.mark.parametrize("name", ["fp32", *(pytest.param(each, marks=pytest.mark.long) for each in ("bf16", "int4"))])
def test_hidden_states_stay_close_with_int8_keys_and_values(
    golden, golden_variant: GoldenVariant, host_operators: Path, tmp_path: Path, name: str
):
    """With our operator, and with the function that a session without it computes."""
    built = golden_variant(name, "int8", "cuda")
    models = built if name in ACTIVATIONS else on_cpu(built, tmp_path)
    for operators in (host_operators, None):
        assert mean_cosine(golden, Models(models, slots=4, operators=operators)) > LEAST_COSINE[name]


@pytest.mark.parametrize("variant", ["fp32"], indirect=True)
def test_tokens_are_those_of_a_repository_for_the_cpu(golden, golden_models: Path, built: Path):
    """With float32; 16 bits move what lies between two tokens. Audio tokens that are sampled take other draws."""
    cpu, cuda = Models(golden_models, slots=4), Models(built, slots=4)
    for column in range(20):
        hidden, text_token = golden["hidden"][column], golden["model_input"][column + 1, :1].clip(0)
        for top_k, temperature in ((25, 0.0), (3, 0.8), (0, 1.2)):
            given = sampler(column, top_k=top_k, temperature=temperature)
            turn = {"hidden": hidden, "text_token": text_token, **given}
            codes = [one(models.depformer, 0, turn)["codes"].tolist() for models in (cpu, cuda)]
            assert codes[0] == codes[1] or temperature > 0
            given = sampler(column, top_k=top_k or CUDA_TEXT_TOP_K, temperature=temperature)
            turn = {"columns": golden["model_input"][: column + 1], **given}
            tokens = [one(models.temporal, 1, turn, start=True)["text_token"].tolist() for models in (cpu, cuda)]
            assert tokens[0] == tokens[1]


@pytest.mark.parametrize("variant", ["fp16"], indirect=True)
@pytest.mark.parametrize("top_k", [0, CUDA_TEXT_TOP_K + 1])
def test_more_candidates_than_are_sorted_are_refused(built: Path, top_k: int):
    models = Models(built, slots=1)
    step = {"columns": np.ones((1, 17), np.int64)}
    with pytest.raises(BadInputError, match=r"top_k must be in 1\.\.256 on this device, got (400|257)"):
        one(models.temporal, 0, {**step, **sampler(1, top_k=top_k, temperature=0.5)}, start=True)
    one(models.temporal, 0, {**step, **sampler(1, top_k=top_k)}, start=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; expected one of cpu, cuda"),
        ({"variant": "bf16"}, "unknown variant 'bf16'; expected one of fp32, fp16, int8, int4, mixed"),
        (
            {"device": "cuda", "variant": "int4", "kv": "fp16"},
            "unknown precision of keys and values 'fp16'; expected one of bf16, int8",
        ),
    ],
)
def test_what_a_device_has_not_is_refused(tmp_path: Path, options, message):
    with pytest.raises(BuildError, match=message):
        build_repository(GOLDEN / "checkpoint", tmp_path / "models", **options)
