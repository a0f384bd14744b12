"""Sessions on a device: padded runs, memory bound once, rows copied out and in. A stand-in takes the device's place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from model_repository.serving.device import DeviceError
from model_repository.serving.device_session import DeviceSession
from model_repository.serving.room import Needs, NoRoomError, require_room
from model_repository.serving.row_request import RowRequest
from tests.model_repository.serving.conftest import Models, one, sampler, together
from tests.model_repository.serving.host_memory import HostMemory

SLOTS = 6


def temporal(models: Path) -> Path:
    return models / "triton" / "temporal" / "1" / "model.onnx"


class Watched(HostMemory):
    """Counts bytes that go to the device and back."""

    def __init__(self, size: int = 1 << 34) -> None:
        super().__init__(size)
        self.up = self.down = 0

    def upload(self, rows: np.ndarray, address: int, pitch: int = 0) -> None:
        self.up += rows.nbytes
        super().upload(rows, address, pitch)

    def download(self, rows: np.ndarray, address: int, pitch: int = 0) -> None:
        self.down += rows.nbytes
        super().download(rows, address, pitch)


@pytest.fixture
def device() -> Watched:
    return Watched()


@pytest.fixture
def session(cuda_models: Path, device: Watched) -> DeviceSession:
    session = DeviceSession(temporal(cuda_models), SLOTS, device)
    session.feeds["top_k"][:] = 1
    return session


def bound_rows(session: DeviceSession, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run from now on, and that nothing is allocated or bound for a size again."""
    sizes: list[int] = []
    run = ort.InferenceSession.run_with_iobinding

    def watched(self: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        size = next(size for size, (bound, _) in session._bindings.items() if bound is binding)
        assert options.get_run_config_entry("gpu_graph_id") == str(size)
        sizes.append(size)
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
    assert device.up == sum(array.nbytes for array in session.feeds.values())
    assert device.down == sum(array.nbytes for array in session.results.values())
    caches = sum(placed.host.nbytes for placed in session._caches().values())
    assert caches > 10 * (device.up + device.down)


def test_states_are_updated_where_they_lie(session: DeviceSession, capfd: pytest.CaptureFixture[str]):
    session.feeds["columns"][:] = 1
    for position in range(3):
        session.feeds["position"][3] = position
        session.run(3, 4)
    for name, cache in session.saved(3, 5).items():
        filled = cache.any(axis=(0, 2)).tolist()
        assert filled == [True] * 3 + [False] * 2, name
    assert "in-place optimization not activated" not in capfd.readouterr().err


def test_a_rows_first_columns_can_be_put_into_another_row(cuda_models: Path):
    models = Models(cuda_models, SLOTS)
    columns = np.random.default_rng(0).integers(0, 9, (12, 17))
    one(models.temporal, 1, {"columns": columns[:11], **sampler(11)}, start=True)
    session = models.temporal._session
    saved = session.saved(1, 11)
    expected = one(models.temporal, 1, {"columns": columns[11:], **sampler(12)})
    one(models.temporal, 4, {"columns": columns[:1] * 0, **sampler(1)}, start=True)
    session.restore(4, saved)
    models.temporal.slots.position[4] = 11
    answer = one(models.temporal, 4, {"columns": columns[11:], **sampler(12)})
    np.testing.assert_array_equal(answer["hidden"], expected["hidden"])


def begin(models: Models, *requests: RowRequest) -> None:
    for request in requests:
        models.temporal.slots.begin(int(request.rows[0]))


def test_prompts_of_several_rows_share_their_runs(cuda_models: Path, monkeypatch: pytest.MonkeyPatch):
    """A prompt is fed column by column: as many runs as the longest has columns, not as all have together."""
    models = Models(cuda_models, SLOTS)
    columns = np.random.default_rng(2).integers(0, 9, (7, 17))
    turns = [
        RowRequest.one(row, {"columns": columns[:count], **sampler(count, temperature=0.8)})
        for row, count in ((0, 4), (2, 7), (5, 1), (4, 2))
    ]
    alone: dict[int, Any] = {}
    for request in turns:
        begin(models, request)
        alone |= together(models.temporal, [request])
    sizes = bound_rows(models.temporal._session, monkeypatch)
    begin(models, *turns)
    answers = together(models.temporal, turns)
    assert sizes == [6, 6, 4, 4, 4, 4, 4, 6], "the prompts until row 4 and then row 0 are through, and the one step"
    for row, answer in alone.items():
        for name, expected in answer.items():
            np.testing.assert_array_equal(answers[row][name], expected)


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


def test_a_graph_for_the_cpu_is_refused(golden_models: Path):
    with pytest.raises(DeviceError, match="columns: expected a shape that follows from the number of rows"):
        DeviceSession(temporal(golden_models), SLOTS, HostMemory())


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
    needs = Needs.of(temporal(cuda_models))
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
    needs = Needs.of(temporal(cuda_models))
    with pytest.raises(NoRoomError, match=r"temporal: 6 slots need .* GB .* are free; build with --slots 5$"):
        DeviceSession(temporal(cuda_models), SLOTS, Shared(1 << 40, left=needs.total(SLOTS) - 1))


@pytest.mark.parametrize("name", ["mimi_encoder", "temporal", "depformer", "mimi_decoder"])
def test_every_model_counts_those_it_is_served_with(cuda_models: Path, monkeypatch, name: str):
    monkeypatch.setattr(ort, "InferenceSession", None)
    graphs = (cuda_models / "triton").glob("*/1/model.onnx")
    size = sum(Needs.of(graph).total(SLOTS) for graph in graphs) - 1
    message = r"the 4 models together: 6 slots need .* GB .* and the device has .*; build with --slots 5$"
    with pytest.raises(NoRoomError, match=message):
        DeviceSession(cuda_models / "triton" / name / "1" / "model.onnx", SLOTS, HostMemory(size))


PUBLISHED = Needs(weights=15_000_000_000, slot=1_572_864_000, workspace=2_500_000_000)
"""About those of the published model at 16 bits: 2 x 32 layers x 2999 columns x 4096 x 2 bytes a slot."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graph that needs so much, beside no others."""
    monkeypatch.setattr(Needs, "of", lambda _model, **_where: PUBLISHED)
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
    with pytest.raises(NoRoomError) as refusal:
        require_room(published, slots, HostMemory(free))
    assert str(refusal.value) == message


def test_what_fits_is_not_refused(published: Path):
    require_room(published, 39, HostMemory(79_600_000_000))
    with pytest.raises(NoRoomError):
        require_room(published, 40, HostMemory(79_600_000_000))
