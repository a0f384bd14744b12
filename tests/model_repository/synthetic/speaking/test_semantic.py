"""Examples of the encoder: what every frame is to show, utterances one after another, and changed features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_repository.synthetic.speaking.features import BANDS, band_centres, log_mel

torch = pytest.importorskip("torch")

DIM, SPECTRA = 128, 4


def example(begin: int, end: int, intent: int, value: float = 0.0) -> Any:
    from model_repository.synthetic.speaking.semantic import TAIL, Example, classes_of

    frames = end + TAIL
    return Example(
        np.full((2 * frames, DIM), value, np.float16),
        np.zeros((frames, 40), np.float32),
        classes_of(intent, begin, end, frames),
        begin,
        end,
        [intent],
        [intent, intent],
        np.empty((frames, 0), np.float32),
    )


def test_a_frame_shows_silence_speech_or_after_the_end_the_intent() -> None:
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, QUIET, SPEECH, UNJUDGED, classes_of

    classes = classes_of(7, 3, 9, 20)
    assert list(classes[:2]) == [QUIET] * 2
    assert list(classes[4:8]) == [SPEECH] * 4
    assert list(classes[11:15]) == [FIRST_INTENT + 7] * 4
    assert list(classes[17:]) == [QUIET] * 3
    assert set(classes[[2, 3, 8, 9, 10, 15, 16]]) == {UNJUDGED}


def test_the_intent_is_shown_before_the_answer_begins() -> None:
    from model_repository.synthetic.speaking.dialogues import DELAY
    from model_repository.synthetic.speaking.semantic import SAID

    assert SAID.stop <= DELAY


def test_utterances_one_after_another_keep_what_each_is_to_show() -> None:
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, joined

    both = joined(example(2, 8, 3, 1.0), example(4, 12, 5, 2.0), np.random.default_rng(0))
    kept = both.end - 12
    assert 8 + 6 <= kept <= 8 + 10
    assert len(both.features) == 2 * len(both.classes) == 2 * len(both.content) == 2 * len(both.acoustic)
    assert set(both.features[: 2 * kept, 0]) == {1.0}
    assert set(both.features[2 * kept :, 0]) == {2.0}
    assert list(both.classes[10:14]) == [FIRST_INTENT + 3] * 4
    assert list(both.classes[both.end + 2 : both.end + 6]) == [FIRST_INTENT + 5] * 4
    assert both.begin == kept + 4
    assert (both.words, both.phonemes) == ([3, 5], [3, 3, 5, 5])


def test_another_speed_keeps_the_order_of_the_speech_and_moves_what_is_to_be_shown() -> None:
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, TAIL, stretched

    given = example(3, 23, 4)
    given.features[:] = np.arange(len(given.features))[:, None]
    given.content[:] = np.arange(len(given.content))[:, None]
    ends = set()
    for seed in range(20):
        made = stretched(given, np.random.default_rng(seed))
        ends.add(made.end)
        assert 3 + 20 / 1.2 - 1 <= made.end <= 3 + 20 / 0.8 + 1
        assert len(made.features) == 2 * len(made.classes) == 2 * len(made.content) == 2 * len(made.acoustic)
        assert len(made.classes) == made.end + TAIL
        assert (np.diff(made.features[:, 0]) >= 0).all()
        # Silence stays as it was, before and after.
        np.testing.assert_array_equal(made.features[:6], given.features[:6])
        np.testing.assert_array_equal(made.features[2 * made.end :], given.features[2 * given.end :])
        assert list(made.classes[made.end + 2 : made.end + 6]) == [FIRST_INTENT + 4] * 4
        assert np.abs(made.content[:, 0] - made.features[::2, 0] / 2).max() <= 0.5
    assert len(ends) > 3


def test_bands_are_those_of_the_spectrum() -> None:
    centres = band_centres()
    assert len(centres) == BANDS
    time = np.arange(24_000) / 24_000
    for band in (12, 20, 33):
        tone = (0.1 * np.sin(2 * np.pi * centres[band] * time)).astype(np.float32)
        assert log_mel(tone)[50].argmax() == band


def test_changed_features_are_those_of_changed_spectra() -> None:
    from model_repository.synthetic.speaking.augment import FeatureSpectra

    generator = np.random.default_rng(0)
    # Features that are a rotation of the spectra: both maps are exact.
    rotation = np.linalg.qr(generator.standard_normal((SPECTRA * BANDS, SPECTRA * BANDS)))[0].astype(np.float32)
    spectra = generator.standard_normal((2000, SPECTRA * BANDS)).astype(np.float32)
    maps = FeatureSpectra.fit(spectra @ rotation, spectra)
    # A steady spectrum with one formant.
    formant = np.exp(-np.square((np.arange(BANDS) - 20) / 3)).astype(np.float32)
    steady = np.tile(5 * formant, (60, SPECTRA)) @ rotation
    changed = maps.varied(torch.from_numpy(np.stack([steady] * 16)), generator).numpy() @ rotation.T
    found = changed.reshape(16, 60, SPECTRA, BANDS).mean((1, 2))
    peaks = found.argmax(1)
    assert len(set(peaks)) > 2
    # 14 % of the frequency are about two bands there, and the line's response moves the highest band by one.
    assert np.abs(peaks - 20).max() <= 4
    assert np.abs(found - 5 * formant).max() < 4


def test_codes_are_trained_to_show_the_intent() -> None:
    from model_repository.synthetic.speaking.augment import FeatureSpectra
    from model_repository.synthetic.speaking.config import SpeakingConfig
    from model_repository.synthetic.speaking.semantic import (
        CONTINUOUS,
        FIRST_INTENT,
        Labels,
        SemanticModel,
        user_losses,
    )

    config = SpeakingConfig(card=256, dimension=DIM, n_filters=2, mimi_num_layers=1)
    labels = Labels({str(number): number for number in range(9)}, {"a": 1}, {"b": 1}, {})
    torch.manual_seed(0)
    model = SemanticModel(config, labels).eval()
    asked = example(2, 8, 5)
    losses, figures = user_losses(model, [asked], CONTINUOUS, FeatureSpectra(torch.zeros(1), torch.zeros(1)), None)
    assert figures["right"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    with torch.no_grad():
        model.classes.weight.zero_()
        model.classes.bias.zero_()
        model.classes.bias[FIRST_INTENT + 5] = 9.0
    certain, figures = user_losses(model, [asked], CONTINUOUS, FeatureSpectra(torch.zeros(1), torch.zeros(1)), None)
    assert figures["right"] == 1.0
    assert float(certain["intent"]) < 0.01 < float(losses["intent"])
    assert float(certain["presence"]) > float(losses["presence"])


def test_the_intent_is_read_from_the_codes_after_a_question() -> None:
    from model_repository.synthetic.speaking.config import SpeakingConfig
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, Labels, SemanticModel, shown_intent

    model = SemanticModel(SpeakingConfig(), Labels({"a": 0, "b": 1, "c": 2}, {}, {}, {}))
    classes = torch.arange(FIRST_INTENT + 3)
    # Code k is class k's, and only its own.
    model.book.count_classes(classes.repeat(50), classes.repeat(50))
    codes = np.array([0, 0, 4, 4, 3, 4, 2, 2, 2, 2])
    assert shown_intent(model, codes) == 2
    assert shown_intent(model, codes[4:]) == 0


def test_latents_are_drawn_to_codes_of_their_class_even_from_far_away() -> None:
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, UNJUDGED, Codebook

    book = Codebook(4, 2, FIRST_INTENT + 2)
    book.centroids.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [0.0, 11.0]]))
    codes, classes = torch.tensor([0, 1, 2, 3]), torch.tensor([0, FIRST_INTENT, FIRST_INTENT + 1, FIRST_INTENT + 1])
    book.count_classes(codes.repeat(50), classes.repeat(50))
    # Each is at a wrong code, but for the last, which is not judged.
    x = torch.tensor([[0.0, 9.0], [9.0, 0.0], [8.0, 1.0]], requires_grad=True)
    losses, nearest = book.losses(x, torch.tensor([FIRST_INTENT, 0, UNJUDGED]))
    assert nearest.tolist() == [2, 1, 1]
    (down,) = torch.autograd.grad(losses["intent"], x, retain_graph=True)
    # Towards code 1 and away from code 2.
    assert down[0, 0] < -0.01
    assert down[0, 1] > 0.01
    assert not down[1:].any()
    (down,) = torch.autograd.grad(losses["presence"], x, retain_graph=True)
    assert down[1, 0] > 0.01
    (down,) = torch.autograd.grad(losses["commitment"], x)
    assert down[0, 0] < 0
    assert down[0, 1] > 0
    assert down[2, 0] < 0


def test_what_is_hopeless_is_learnt_less_than_what_is_doubtful() -> None:
    from model_repository.synthetic.speaking.semantic import FIRST_INTENT, Codebook

    book = Codebook(2, 2, FIRST_INTENT + 2)
    book.centroids.copy_(torch.tensor([[0.0, 0.0], [20.0, 0.0]]))
    codes = torch.tensor([0, 1])
    book.count_classes(codes.repeat(50), (codes + FIRST_INTENT).repeat(50))
    # Between the codes and at the wrong one; both should be at the second.
    x = torch.tensor([[10.0, 0.0], [0.0, 0.0]], requires_grad=True)
    losses, _ = book.losses(x, torch.tensor([FIRST_INTENT + 1] * 2))
    (down,) = torch.autograd.grad(losses["intent"], x, retain_graph=True)
    assert down[0, 0] < 10 * down[1, 0] < 0
    (down,) = torch.autograd.grad(losses["commitment"], x)
    assert down[0, 0] < down[1, 0] < 0
