"""The Python interface: what README's example does, and its wrong uses."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import knee_siglip
from knee_siglip.core.errors import UsageError
from knee_siglip.imaging.decode.read import ImageError
from knee_siglip.model.training_facts import TrainingFacts
from knee_siglip.serve.model import KneeModel

QUERIES = ["severe osteoarthritis of knee joint", "normal knee joint"]


@pytest.fixture
def model(checkpoint_path: Path) -> KneeModel:
    return knee_siglip.load(checkpoint_path, device="cpu")


@pytest.fixture
def grey() -> np.ndarray:
    """(40, 30) uint8, a gradient."""
    return np.linspace(0, 255, 1200).astype(np.uint8).reshape(40, 30)


@pytest.fixture
def png(grey: np.ndarray, tmp_path: Path) -> Path:
    Image.fromarray(grey).save(tmp_path / "knee.png")
    return tmp_path / "knee.png"


def test_a_file_by_either_name_and_its_array_give_the_same_answer(
    model: KneeModel, png: Path, grey: np.ndarray
) -> None:
    by_path, by_name, by_array = model.predict([png, str(png), grey], QUERIES)
    assert by_path == by_name == by_array
    assert {ranked.query for ranked in by_path.ranking} == set(QUERIES)
    assert by_path.ranking[0].similarity >= by_path.ranking[1].similarity


def test_a_study_of_equal_images_is_that_image_and_the_order_of_its_images_does_not_count(
    model: KneeModel, grey: np.ndarray
) -> None:
    (alone,) = model.predict([grey], QUERIES)
    assert model.predict_study([grey, grey], QUERIES).probabilities == pytest.approx(alone.probabilities, abs=1e-6)
    one, other = (model.predict_study(images, QUERIES) for images in ([grey, 255 - grey], [255 - grey, grey]))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert one.probabilities != pytest.approx(alone.probabilities, abs=1e-6)
    with pytest.raises(UsageError, match="at least one image"):
        model.predict_study([], QUERIES)


def test_predictions_are_in_the_order_of_the_images(model: KneeModel, grey: np.ndarray) -> None:
    images = [grey, 255 - grey, grey]
    together = model.predict(images, QUERIES)
    alone = [model.predict([image], QUERIES)[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert together[0].probabilities != pytest.approx(together[1].probabilities, abs=1e-6)


def test_no_image_gives_no_prediction(model: KneeModel) -> None:
    assert model.predict([], QUERIES) == []


def test_a_phrase_is_explained_on_the_pixels_that_the_encoder_sees(model: KneeModel, png: Path) -> None:
    explanation = model.explain(png, "effusion of knee joint", against="normal knee joint")
    assert explanation.pixels.shape == explanation.heat.shape == (28, 28)
    assert np.ptp(explanation.heat) > 0
    assert explanation.overlay().startswith(b"\xff\xd8")  # a JPEG


def test_a_phrase_of_unknown_words_is_not_found_and_unknown_words_beside_known_ones_are_a_caution(
    model: KneeModel, grey: np.ndarray
) -> None:
    model.predictor.checkpoint.facts = TrainingFacts(
        rows=9,
        drawn_rows=9,
        patients=4,
        verdict="learned",
        signs=[],
        temperature=None,
        calibrated_on=0,
        prompts="0" * 64,
        words=["effusion", "joint", "knee"],
    )
    nowhere = model.explain(grey, "a green bicycle")
    assert nowhere.missing == nowhere.cautions[-1] == "not in the training texts: green, bicycle"
    partly = model.explain(grey, "large effusion of the knee")
    assert partly.cautions[-1] == "not in the training texts: large"
    assert "training texts" not in partly.missing
    assert model.explain(grey, "Effusions.").cautions == model.predictor.cautions


def test_heat_is_in_log_odds_but_of_the_gradient_in_shares_of_its_peak(model: KneeModel, grey: np.ndarray) -> None:
    scale = model.predictor.checkpoint.model.logit_scale
    before = model.explain(grey, "effusion", "normal")
    with torch.no_grad():
        scale += math.log(3)
    after = model.explain(grey, "effusion", "normal")
    assert after.heat == pytest.approx(3 * before.heat, rel=1e-4)
    assert after.scale.unit == "log-odds"
    shares = model.explain(grey, "effusion", "normal", "gradient")
    assert (shares.scale.unit, shares.heat.max()) == ("of peak", pytest.approx(1))


@pytest.mark.parametrize(
    ("phrase", "against", "method", "said"),
    [
        (" ", "normal knee", "raw", "must be texts"),
        ("Effusion", "effusion!", "raw", "not the same one"),
        ("effusion", "normal knee", "magic", "method = 'magic': there are raw, gradient, occlusion"),
    ],
)
def test_questions_without_a_meaning_are_refused(model: KneeModel, grey, phrase, against, method, said) -> None:
    with pytest.raises(UsageError, match=said):
        model.explain(grey, phrase, against, method)


@pytest.mark.parametrize("image", [np.zeros((4, 4), dtype=float), np.zeros((4, 4, 3), dtype=np.uint8)])
def test_arrays_that_are_no_grey_image_are_refused(model: KneeModel, image: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"uint8 \(height, width\)"):
        model.predict([image], QUERIES)


def test_an_unreadable_file_is_named(model: KneeModel, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png"):
        model.predict([tmp_path / "gone.png"], QUERIES)


def test_importing_the_package_imports_no_torch_and_unknown_names_are_errors() -> None:
    check = "import sys, knee_siglip; assert knee_siglip.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = knee_siglip.lod
