"""Sessions on a device: padded runs, memory bound once, rows copied out and in. A stand-in takes the device's place."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repository.serving.device import DeviceError
from model_repository.serving.device_session import CUDNN_ATTENTION, DeviceSession
from model_repository.serving.memory import MemoryEstimate, MemoryShortageError, check_memory
from model_repository.serving.row_request import RowRequest
from tests.model_repository.serving.conftest import Models, one, sampler
from tests.model_repository.serving.host_memory import HostMemory

SLOTS = 6


def temporal(models: Path) -> Path:
    return models / "triton" / "temporal" / "1" / "model.onnx"


class Watched(HostMemory):
    """Counts bytes that go to the device and back."""

    def __init__(self, size: int = 1 << 34) -> None:
        super().__init__(size)
        self.up = self.down = 0

    def upload(self, rows: np.ndarray, address: int) -> None:
        self.up += rows.nbytes
        super().upload(rows, address)

    def download(self, rows: np.ndarray, address: int) -> None:
        self.down += rows.nbytes
        super().download(rows, address)


@pytest.fixture
def device() -> Watched:
    return Watched()


@pytest.fixture
def session(cuda_models: Path, device: Watched) -> DeviceSession:
    session = DeviceSession(temporal(cuda_models), SLOTS, device)
    session.feeds["top_k"][:] = session.feeds["filled"][:] = 1
    return session


def cache(session: DeviceSession, device: HostMemory, name: str) -> np.ndarray:
    """A cache [slots, window, dim] as the device has it."""
    placed = session._states[name]
    return device.blocks[placed.address].view(placed.host.dtype).reshape(placed.host.shape)


def bound_rows(session: DeviceSession, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step from now on, 0 for a prefill run, and that each size is captured as a graph of its own."""
    sizes: list[int] = []
    run = ort.InferenceSession.run_with_iobinding

    def watched(self: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        steps = {size: bound for (kind, size), (bound, _) in session._bindings.items() if kind == "step"}
        captured = [size for size, bound in steps.items() if bound is binding]
        assert options.get_run_config_entry("gpu_graph_id") == str(captured[0] if captured else -1)
        sizes.append(captured[0] if captured else 0)
        run(self, binding, options)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", watched)
    return sizes


def test_a_run_covers_all_rows_up_to_the_next_size(session: DeviceSession, monkeypatch):
    sizes = bound_rows(session, monkeypatch)
    for start, stop in ((0, 1), (1, 2), (2, 3), (0, 4), (3, 5), (5, 6), (0, 6)):
        session.run(start, stop)
    assert sizes == [1, 2, 4, 4, 6, 6, 6]
    assert len(session._bindings) == 4, "one for each of 1, 2, 4 and 6 rows"


def test_only_small_inputs_and_outputs_leave_the_device(session: DeviceSession, device: Watched):
    session.run(0, SLOTS)
    blocks = len(device.blocks)
    device.up = device.down = 0
    session.run(0, SLOTS)
    assert len(device.blocks) == blocks
    assert device.up == sum(array.nbytes for name, array in session.feeds.items() if name != "embeddings")
    assert device.down == sum(array.nbytes for array in session.results.values())
    caches = sum(placed.host.nbytes for placed in session._caches())
    assert caches > 10 * (device.up + device.down)


def test_states_are_updated_where_they_lie(session: DeviceSession, device: Watched, capfd: pytest.CaptureFixture[str]):
    session.feeds["columns"][:] = 1
    for position in range(3):
        session.feeds["position"][3] = position
        session.run(3, 4)
    for name in session._states:
        written = np.argwhere(cache(session, device, name).any(axis=2)).tolist()
        # Rows that were run along write into their first slot, which their next step overwrites.
        assert written == [[0, 0], [1, 0], [2, 0], [3, 0], [3, 1], [3, 2]], name
    assert "in-place optimization not activated" not in capfd.readouterr().err


def test_a_rows_first_columns_can_be_put_into_another_row(cuda_models: Path):
    models = Models(cuda_models, SLOTS)
    columns = np.random.default_rng(0).integers(0, 9, (12, 17))
    one(models.temporal, 1, {"columns": columns[:11], **sampler(11)}, start=True)
    session = models.temporal.session
    saved = session.save(1, 11)
    expected = one(models.temporal, 1, {"columns": columns[11:], **sampler(12)})
    one(models.temporal, 4, {"columns": columns[:1] * 0, **sampler(1)}, start=True)
    session.restore(4, saved)
    models.temporal.slots.position[4] = 11
    answer = one(models.temporal, 4, {"columns": columns[11:], **sampler(12)})
    np.testing.assert_array_equal(answer["hidden"], expected["hidden"])


def test_a_prefix_for_which_there_is_no_memory_is_not_kept(session: DeviceSession, device: Watched, monkeypatch):
    saved = session.save(0, 5)
    assert saved is not None
    blocks = len(device.blocks)
    session.discard(saved)
    assert len(device.blocks) == blocks - 1

    def full(size: int) -> int:
        raise DeviceError("out of memory")

    monkeypatch.setattr(device, "allocate", full)
    assert session.save(0, 5) is None


def test_a_prompt_is_run_in_chunks_and_its_last_column_as_a_step(cuda_models: Path, monkeypatch: pytest.MonkeyPatch):
    """Near the end of the window, where a padded chunk would wrap, columns are run one by one."""
    monkeypatch.setattr(DeviceSession, "chunk", 16)
    models = Models(cuda_models, SLOTS)
    sizes = bound_rows(models.temporal.session, monkeypatch)
    columns = np.random.default_rng(2).integers(0, 9, (models.window + 3, 17))
    prompt = {"columns": columns[:34], **sampler(34, temperature=0.8)}
    one(models.temporal, 2, prompt, start=True)
    assert sizes == [0, 0, 0, 4], "33 columns are chunks of 16, 8 and 9, so that none has one column"
    sizes.clear()
    one(models.temporal, 2, {"columns": columns[34:], **sampler(len(columns))})
    assert sizes == [0] + [4] * 8, "55 - 34 slots are left, then 5"


@pytest.mark.parametrize("prefilled", [2, 17, 40, 70])
def test_a_prompt_in_padded_chunks_leaves_what_steps_leave(cuda_models: Path, monkeypatch, golden, prefilled: int):
    """To rounding; 70 columns wrap around the ring of 55."""
    monkeypatch.setattr(DeviceSession, "chunk", 16)
    models = Models(cuda_models, SLOTS)
    columns = golden["model_input"][: prefilled + 20]
    one(models.temporal, 1, {"columns": columns[:prefilled], **sampler(prefilled)}, start=True)
    for at in range(prefilled, len(columns)):
        answer = one(models.temporal, 1, {"columns": columns[at : at + 1], **sampler(at + 1)})
        np.testing.assert_allclose(answer["hidden"], golden["hidden"][at], atol=0.02)


def test_pieces_of_a_prompt_are_the_whole_to_the_last_bit(cuda_models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(DeviceSession, "chunk", 16)
    models = Models(cuda_models, SLOTS)
    columns = np.random.default_rng(3).integers(0, 9, (36, 17))
    ends = []
    for row, cuts in enumerate(([0, 35], [0, 8, 24, 35], [0, 16, 27, 35])):
        models.temporal.slots.begin(row)
        for start, stop in pairwise(cuts):
            request = models.temporal.parse(RowRequest.one(row, {"columns": columns[start:stop], **sampler(stop)}))
            models.temporal.slots.clean(request.rows)
            models.temporal._prefill(request, needs_outputs=False)
        ends.append(one(models.temporal, row, {"columns": columns[35:], **sampler(36)})["hidden"])
    np.testing.assert_array_equal(ends[1], ends[0])
    np.testing.assert_array_equal(ends[2], ends[0])


def test_rows_that_rest_are_read_in_one_slot(cuda_models: Path):
    models = Models(cuda_models, SLOTS)
    step = {"columns": np.ones((1, 17), np.int64)}
    for row in (0, 2):
        for position in range(5):
            one(models.temporal, row, {**step, **sampler(position)}, start=position == 0)
    feeds = models.temporal.session.feeds
    one(models.temporal, 2, {**step, **sampler(6)})
    assert feeds["filled"].tolist() == [1, 1, 6, 1, 1, 1]
    assert feeds["position"].tolist() == [5, 0, 6, 0, 0, 0]


def test_a_reset_zeroes_streaming_states_of_one_row(cuda_models: Path):
    models = Models(cuda_models, SLOTS)
    frame = np.random.default_rng(1).standard_normal(1920).astype(np.float32)
    first = [one(models.encoder, row, {"pcm": frame}, start=True)["codes"] for row in (2, 3)]
    later = one(models.encoder, 3, {"pcm": frame})["codes"]
    again = one(models.encoder, 2, {"pcm": frame}, start=True)["codes"]
    np.testing.assert_array_equal(again, first[0])
    fresh = Models(cuda_models, SLOTS)
    one(fresh.encoder, 0, {"pcm": frame}, start=True)
    np.testing.assert_array_equal(later, one(fresh.encoder, 0, {"pcm": frame})["codes"])


def test_closing_gives_all_memory_back(session: DeviceSession, device: Watched):
    assert device.blocks
    session.close()
    assert not device.blocks


def test_a_provider_that_cannot_be_loaded_is_told(cuda_models: Path):
    """ONNX Runtime itself warns and goes on with the CPU."""
    device = HostMemory()
    device.providers = [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(DeviceError, match="temporal: expected to run on CUDAExecutionProvider as a whole"),
    ):
        DeviceSession(temporal(cuda_models), SLOTS, device)


def test_what_a_slot_needs_is_what_it_takes(cuda_models: Path, session: DeviceSession, device: Watched):
    needs = MemoryEstimate.of(temporal(cuda_models))
    manifest = json.loads((cuda_models / "manifest.json").read_text())
    window, heads, head_dim, layers = manifest["context"] - 1, 2, 16, 2
    assert needs.slot == 2 * layers * heads * window * head_dim * 2
    assert needs.slot * SLOTS == sum(placed.host.nbytes for placed in session._states.values())
    assert needs.weights == temporal(cuda_models).with_name("model.onnx.data").stat().st_size


class Shared(HostMemory):
    """A device of which others hold all but `left` bytes."""

    def __init__(self, size: int, left: int) -> None:
        super().__init__(size)
        self.left = left

    def free(self) -> int:
        return min(self.left, super().free())


def test_slots_that_do_not_fit_are_refused_before_anything_is_loaded(cuda_models: Path, monkeypatch):
    monkeypatch.setattr(ort, "InferenceSession", None)
    needs = MemoryEstimate.of(temporal(cuda_models))
    with pytest.raises(MemoryShortageError, match=r"temporal: 6 slots need .* GB .* are free; build with --slots 5$"):
        DeviceSession(temporal(cuda_models), SLOTS, Shared(1 << 40, left=needs.total(SLOTS) - 1))


@pytest.mark.parametrize("name", ["mimi_encoder", "temporal", "depformer", "mimi_decoder"])
def test_every_model_counts_those_it_is_served_with(cuda_models: Path, monkeypatch, name: str):
    monkeypatch.setattr(ort, "InferenceSession", None)
    graphs = (cuda_models / "triton").glob("*/1/model.onnx")
    size = sum(MemoryEstimate.of(graph).total(SLOTS) for graph in graphs) - 1
    message = r"the 4 models together: 6 slots need .* GB .* and the device has .*; build with --slots 5$"
    with pytest.raises(MemoryShortageError, match=message):
        DeviceSession(cuda_models / "triton" / name / "1" / "model.onnx", SLOTS, HostMemory(size))


PUBLISHED = MemoryEstimate(weights=15_000_000_000, slot=1_572_864_000, workspace=2_500_000_000)
"""About those of the published model at 16 bits: 2 x 32 layers x 2999 columns x 4096 x 2 bytes a slot."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph that needs so much, beside no others."""
    monkeypatch.setattr(MemoryEstimate, "of", lambda _model, **_where: PUBLISHED)
    return temporal(tmp_path)


@pytest.mark.parametrize(
    ("free", "slots", "message"),
    [
        (
            79_600_000_000,
            64,
            "temporal: 64 slots need 118.2 GB of device memory (weights 15.0, each slot 1.6, workspace 2.5) "
            "of which 79.6 are free; build with --slots 39",
        ),
        (
            18_000_000_000,
            1,
            "temporal: 1 slot needs 19.1 GB of device memory (weights 15.0, each slot 1.6, workspace 2.5) "
            "of which 18.0 are free: not even one slot fits; build a smaller variant or free memory",
        ),
    ],
)
def test_a_refusal_says_how_many_would_fit(published: Path, free, slots, message):
    with pytest.raises(MemoryShortageError) as refusal:
        check_memory(published, slots, HostMemory(free))
    assert str(refusal.value) == message


def test_what_fits_is_not_refused(published: Path):
    check_memory(published, 39, HostMemory(79_600_000_000))
    with pytest.raises(MemoryShortageError):
        check_memory(published, 40, HostMemory(79_600_000_000))


def test_a_first_run_that_cudnn_refuses_is_repeated_without_it(
    cuda_models: Path, device: Watched, monkeypatch: pytest.MonkeyPatch
):
    """And a run that fails without it, or later, fails."""
    monkeypatch.delenv(CUDNN_ATTENTION, raising=False)
    run, broken = ort.InferenceSession.run_with_iobinding, []

    def refusing(self: ort.InferenceSession, *given: object) -> None:
        if os.environ.get(CUDNN_ATTENTION) != "0" or broken:
            raise RuntimeError("no valid plan")
        run(self, *given)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", refusing)
    session = DeviceSession(temporal(cuda_models), SLOTS, device)
    session.feeds["top_k"][:] = session.feeds["filled"][:] = 1
    session.run(0, 1)
    assert os.environ[CUDNN_ATTENTION] == "0"
    assert session.results["hidden"][0].any()
    broken.append(True)
    for stop in (1, 2):
        with pytest.raises(RuntimeError, match="no valid plan"):
            session.run(0, stop)
