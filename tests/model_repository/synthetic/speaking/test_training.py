"""The trained modules are the served ones: names, shapes and results; and training goes on where it stopped."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.prompt_codes import SILENCE
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.quantizer import Quantizer
from model_repository.synthetic.speaking.tokenizer import train_speaking_tokenizer
from tests.model_repository.mimi_numpy import decode, encode
from tests.model_repository.temporal_numpy import TemporalNumpy

torch = pytest.importorskip("torch")

CONFIG = SpeakingConfig(card=256, dimension=128, n_filters=2, mimi_context=10, dim=48, num_layers=2, depformer_dim=32)


@pytest.fixture(scope="module")
def models() -> dict[str, object]:
    from model_repository.synthetic.speaking.language_model import LanguageModel
    from model_repository.synthetic.speaking.mimi import Decoder
    from model_repository.synthetic.speaking.semantic import Labels, SemanticModel

    torch.manual_seed(0)
    semantic = SemanticModel(CONFIG, Labels({"a": 0}, {"b": 1}, {"c": 1}, {}))
    semantic.book.centroids.normal_()
    books = np.random.default_rng(0).standard_normal((7, CONFIG.card, 64)).astype(np.float32)
    return {
        "semantic": semantic.eval(),
        "decoder": Decoder(CONFIG.geometry().mimi),
        "language": LanguageModel(CONFIG.geometry().lm),
        "quantizer": Quantizer(books / 4),
    }


@pytest.fixture(scope="module")
def checkpoint(models: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    from model_repository.synthetic.speaking.export import expand, write_compact
    from model_repository.synthetic.speaking.recipe import mimi_tensors

    folder = tmp_path_factory.mktemp("speaking")
    lm = {name: tensor.half().float() for name, tensor in models["language"].state_dict().items()}
    models["language"].load_state_dict(lm)
    for name in ("semantic", "decoder"):
        models[name].load_state_dict({key: value.half().float() for key, value in models[name].state_dict().items()})
    quantizer = models["quantizer"]
    quantizer.books[:] = quantizer.books.astype(np.float16)
    write_compact(
        folder / "compact",
        {name: tensor.numpy() for name, tensor in lm.items()},
        mimi_tensors(models["semantic"], models["decoder"], quantizer),
        {"NATF0": np.random.default_rng(1).integers(0, 256, (9, 8))},
        train_speaking_tokenizer(CONFIG.text_card),
        CONFIG,
    )
    expand(folder / "compact", folder / "checkpoint")
    return Checkpoint.open(folder / "checkpoint")


def test_the_checkpoint_has_every_tensor_of_the_published_layout(checkpoint: Checkpoint) -> None:
    geometry = CONFIG.geometry(2048)
    assert {name: checkpoint.lm.shape(name) for name in checkpoint.lm.names()} == lm_shapes(geometry.lm)
    assert {name: checkpoint.mimi.shape(name) for name in checkpoint.mimi.names()} == mimi_shapes(geometry.mimi)


def test_published_codes_mean_the_distinct_ones(checkpoint: Checkpoint) -> None:
    table = checkpoint.lm.read("emb.0.weight")
    np.testing.assert_array_equal(table[SILENCE[0]], table[SILENCE[0] % 256])
    logits = checkpoint.lm.read("linears.3.weight")
    np.testing.assert_array_equal(logits[300], logits[300 % 256])


def test_the_encoder_that_was_trained_is_the_one_that_serves(models: dict[str, object], checkpoint: Checkpoint) -> None:
    semantic, quantizer = models["semantic"], models["quantizer"]
    sound = 0.1 * np.random.default_rng(2).standard_normal(12 * 1920).astype(np.float32)
    with torch.no_grad():
        features = semantic.codec.encoder(torch.from_numpy(sound)[None, None]).transpose(1, 2)
        first, rest = semantic.split(semantic.codec.latents(features)[0])
    expected = np.concatenate([semantic.book.codes(first).numpy()[:, None], quantizer.encode(rest.numpy())], axis=1)
    served = encode(sound, checkpoint.mimi, checkpoint.geometry.mimi)
    np.testing.assert_array_equal(served % 256, expected)


def test_the_decoder_that_was_trained_is_the_one_that_serves(models: dict[str, object], checkpoint: Checkpoint) -> None:
    codes = np.random.default_rng(3).integers(0, 2048, (10, 8))
    with torch.no_grad():
        sums = torch.from_numpy(models["quantizer"].decode(codes[:, 1:] % 256))
        expected = models["decoder"](sums[None])[0].numpy()
    served = decode(codes, checkpoint.mimi, checkpoint.geometry.mimi)
    np.testing.assert_allclose(served, expected, atol=1e-5)


def test_the_temporal_transformer_that_was_trained_is_the_one_that_serves(
    models: dict[str, object], checkpoint: Checkpoint
) -> None:
    columns = np.random.default_rng(4).integers(0, 256, (20, 17))
    models["language"].eval()
    with torch.no_grad():
        expected = models["language"].hidden(torch.from_numpy(columns)[None], torch.arange(20)[None])[0].numpy()
    served = TemporalNumpy(checkpoint.lm, checkpoint.geometry.lm).hidden(columns)
    np.testing.assert_allclose(served, expected, atol=1e-4)


def test_depth_steps_see_earlier_codebooks_only(models: dict[str, object]) -> None:
    language = models["language"]
    hidden = torch.randn(3, CONFIG.dim)
    following = torch.randint(0, 256, (3, 9))
    changed = following.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 256
    with torch.no_grad():
        before, after = language.audio_logits(hidden, following), language.audio_logits(hidden, changed)
    # Stream 5 is codebook 4: its own step and those before it do not see it.
    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])


def test_training_that_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    from model_repository.synthetic.speaking.training import train

    def run(path: Path, stop: int) -> np.ndarray:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def step(index: int, generator: np.random.Generator) -> tuple[object, dict[str, float]]:
            if index == stop:
                raise KeyboardInterrupt
            x = torch.from_numpy(generator.standard_normal((8, 4)).astype(np.float32))
            return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}

        with contextlib.suppress(KeyboardInterrupt):
            train(path, model, step, 80, rate=0.1, seed=0, warmup=2, save_seconds=0.0)
        return model.weight.detach().numpy()

    whole = run(tmp_path / "whole.pt", 99)
    for stop in (7, 30, 99):
        parts = run(tmp_path / "parts.pt", stop)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_allclose(whole, np.ones((1, 4)), atol=0.2)


def test_the_silent_line_gets_the_published_semantic_code(models: dict[str, object]) -> None:
    from model_repository.synthetic.speaking.semantic import place_silence

    semantic = models["semantic"]
    place_silence(semantic)
    with torch.no_grad():
        features = semantic.codec.encoder(torch.zeros(1, 1, 60 * 1920)).transpose(1, 2)
        codes = semantic.book.codes(semantic.split(semantic.codec.latents(features))[0])
    assert int(codes[0, -1]) == SILENCE[0] % 256


@pytest.mark.parametrize("longest", [300, 1500, 9000])
def test_batches_have_about_as_many_columns_and_every_dialogue_once(longest: int) -> None:
    from model_repository.synthetic.speaking.dialogues import Dialogue
    from model_repository.synthetic.speaking.language import BATCH, POOL, batches

    nothing = np.zeros(0, bool)
    lengths = [longest, *np.random.default_rng(0).integers(100, 250, POOL * BATCH - 1)]
    dialogues = [
        Dialogue(np.full((length, 17), index), np.arange(length), 0, nothing, nothing)
        for index, length in enumerate(lengths)
    ]
    found = batches(dialogues)
    assert sorted(int(dialogue.columns[0, 0]) for batch in found for dialogue in batch) == list(range(len(dialogues)))
    assert len(found) == POOL
    assert all(found)
    columns = [sum(len(dialogue.columns) for dialogue in batch) for batch in found]
    assert max(columns) <= sum(lengths) / POOL + longest


def test_convolutions_begin_with_outputs_of_unit_deviation() -> None:
    from model_repository.synthetic.speaking.mimi import Convolution, Decoder, TransposedConvolution
    from model_repository.synthetic.speaking.training import initialize

    torch.manual_seed(0)
    decoder = Decoder(CONFIG.geometry().mimi)
    sums = torch.randn(2, 6, 64)
    initialize(decoder, lambda: decoder(sums))
    deviations: dict[str, float] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, (Convolution, TransposedConvolution)):
            module.register_forward_hook(
                lambda _m, _i, output, name=name: deviations.update({name: float(output.std())})
            )
    with torch.no_grad():
        decoder(sums)
    assert len(deviations) == 14
    for name, deviation in deviations.items():
        assert deviation == pytest.approx(0.5 if ".block.3" in name else 1.0, rel=0.01)
