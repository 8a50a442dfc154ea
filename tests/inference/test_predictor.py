"""One image: ranking, probabilities, grade, and the wrong uses."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from knee_siglip.core.errors import UsageError
from knee_siglip.imaging.fit.transform import load_pixels
from knee_siglip.inference.predictor import Prediction, Predictor, distinct_queries
from knee_siglip.model.training_facts import Likeness, TrainingFacts, prompts_digest
from knee_siglip.task.knee import USUAL_QUERIES

SCALE, BIAS = 10.0, -2.0  # the fake checkpoint's, in conftest.py


def ranked(predictor: Predictor, image: Path, queries: list[str]) -> Prediction:
    return predictor.predict(load_pixels(image, predictor.transform)[None], queries)[0]


def test_queries_are_ranked_by_similarity_whatever_their_order(
    predictor: Predictor, grey_image: Callable[[int], Path]
) -> None:
    prediction = ranked(predictor, grey_image(200), ["at 0", "at 200", "at 120"])
    assert [query.query for query in prediction.ranking] == ["at 200", "at 120", "at 0"]
    assert prediction.ranking[0].similarity == pytest.approx(1.0, abs=1e-6)
    assert prediction.ranking[2].similarity == pytest.approx(math.cos(200 / 255 * math.pi / 2), abs=1e-6)


def test_probability_is_the_sigmoid_of_scale_times_similarity_plus_bias(
    predictor: Predictor, grey_image: Callable[[int], Path]
) -> None:
    best = ranked(predictor, grey_image(255), ["at 0"]).ranking[0]
    assert best.probability == pytest.approx(1 / (1 + math.exp(-(SCALE * best.similarity + BIAS))), abs=1e-9)


def test_grade_is_that_of_the_nearest_prompts(predictor: Predictor, grey_image: Callable[[int], Path]) -> None:
    for grade in range(5):
        prediction = ranked(predictor, grey_image(grade * 60), ["at 0"])
        assert prediction.label == grade
        assert sum(prediction.probabilities) == pytest.approx(1.0)


def test_grade_probabilities_are_the_softmax_over_the_prompt_logits(predictor: Predictor) -> None:
    image_embeds = np.array([[0.6, 0.8]], dtype=np.float32)
    weights = np.array([np.exp(SCALE * (prompts @ image_embeds[0])).mean() for prompts in predictor.prompt_embeds])
    assert predictor.grade_probabilities(image_embeds)[0] == pytest.approx(weights / weights.sum(), abs=1e-5)


def test_image_size_overrides_the_checkpoints_own(predictor: Predictor) -> None:
    assert predictor.transform.image_size == 28
    other = Predictor(Path("fake.pt"), image_size=42, device="cpu").transform
    assert (other.image_size, other.fit) == (42, predictor.transform.fit)


@pytest.mark.parametrize(("image_size", "said"), [(30, "nearest: 28 or 42"), (0, "positive"), (-14, "positive")])
def test_image_size_that_whole_patches_do_not_fill_is_refused(predictor: Predictor, image_size: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Predictor(Path("fake.pt"), image_size=image_size, device="cpu")


def test_equal_queries_are_asked_once_and_empty_ones_refused() -> None:
    assert distinct_queries(["b", "a", "b"]) == ["b", "a"]
    for wrong in ([], ["a", "  "]):
        with pytest.raises(UsageError, match="query"):
            distinct_queries(wrong)


def test_usual_queries_cover_what_a_reader_asks_first() -> None:
    together = " ".join(USUAL_QUERIES).lower()
    topics = (
        "normal",
        "doubtful",
        "mild",
        "moderate",
        "severe",
        "narrowing",
        "osteophytes",
        "effusion",
        "fracture",
        "patellofemoral",
    )
    assert [topic for topic in topics if topic not in together] == []
    assert distinct_queries(USUAL_QUERIES) == list(USUAL_QUERIES)


FACTS = TrainingFacts(
    rows=9, drawn_rows=9, patients=4, verdict="learned", signs=[], temperature=2.0, calibrated_on=50, prompts="0" * 64
)


def test_probabilities_are_calibrated_for_the_prompts_and_the_size_of_the_training(predictor: Predictor) -> None:
    brightness = predictor.embed_images(np.full((1, 28, 28), 100, dtype=np.uint8))
    raw = predictor.grade_probabilities(brightness)
    fitted = FACTS.model_copy(update={"prompts": prompts_digest(predictor.task)})
    predictor.checkpoint.facts = fitted
    calibrated = Predictor(Path("fake.pt"), device="cpu")
    softer = np.sqrt(raw) / np.sqrt(raw).sum()  # halved logits
    assert calibrated.grade_probabilities(brightness) == pytest.approx(softer)
    assert calibrated.cautions == ["not for clinical use", "trained on drawn knees"]
    other_size = Predictor(Path("fake.pt"), image_size=42, device="cpu")
    predictor.checkpoint.facts = FACTS
    other_prompts = Predictor(Path("fake.pt"), device="cpu")
    for other in (other_size, other_prompts):
        assert other.grade_probabilities(brightness) == pytest.approx(raw)
        assert other.cautions[-1] == "probabilities are not calibrated"


def test_an_image_unlike_the_training_is_marked(predictor: Predictor) -> None:
    predictor.checkpoint.likeness = Likeness(np.array([1.0, 0.0]), np.eye(2), 0.5)
    black, bright = predictor.predict(np.stack([np.zeros((28, 28)), np.full((28, 28), 240)]).astype(np.uint8), ["at 0"])
    assert (black.is_unlike_training, bright.is_unlike_training) == (False, True)
    assert bright.cautions[0] == "unlike the training images"
    assert bright.cautions[1:] == black.cautions
    other_size = Predictor(Path("fake.pt"), image_size=42, device="cpu")
    assert np.isnan(other_size.distances(np.eye(2))).all()
