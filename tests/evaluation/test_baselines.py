"""Baselines against plain loops, what they may not see, and the verdict."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, cohen_kappa_score

from knee_siglip.encoders.backbones import write_backbones
from knee_siglip.evaluation.baselines import (
    baseline_metrics,
    baselines_table,
    beats_baselines,
    constant,
    load_untrained,
    pixel_neighbour,
    text_prior,
    thumbnails,
    untrained,
)
from knee_siglip.evaluation.measurement import measure_headline
from knee_siglip.evaluation.predictions import predictions_of
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.params.sections import ModelParams, Params
from toys import ArrayPixels

HEADLINES = {
    "contrastive_accuracy",
    "retrieval.image_to_text.recall_at_1",
    "retrieval.text_to_image.recall_at_1",
    "zero_shot_kl.accuracy",
    "zero_shot_kl.balanced_accuracy",
    "zero_shot_kl.quadratic_weighted_kappa",
    "zero_shot_kl.macro_auroc",
}
SIDE = 56
NOWHERE = Path("no such folder")


@pytest.fixture
def pair(make_split):
    """Test (rows 0-39 of the pixels) and train (40-199)."""

    def make(**changes):
        train = make_split(count=160, seed=2, name="train", numbers=np.arange(40, 200), **changes)
        return make_split(count=40, seed=1, numbers=np.arange(40), **changes), train

    return make


@pytest.fixture
def random_pixels():
    return ArrayPixels(np.random.default_rng(0).integers(0, 256, (200, SIDE, SIDE), dtype=np.uint8))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "backbones"
    write_backbones(ModelParams(), folder)
    return folder


def trained_model(backbones, seed=3):
    """A checkpoint whose weights all differ from those that it began with, and these."""
    torch.manual_seed(seed)
    start, _ = build_model(backbones, ModelParams(), contrastive_batch=64)
    torch.manual_seed(seed)
    model, tokenizer = build_model(backbones, ModelParams(), contrastive_batch=64)
    with torch.no_grad():
        for weight in model.parameters():
            weight += torch.randn_like(weight)
    transform = Transform(image_size=SIDE, fit="pad", contrast="none")
    return Checkpoint(model.eval(), tokenizer, transform, Params(seed=seed, image_size=SIDE).to_dict()), start


def shuffled(values, seed=0):
    return np.random.default_rng(seed).permutation(values)


def test_constant_is_what_constant_embeddings_reach(make_split, data_of):
    split = make_split(wordings=10)
    same = np.full((160, 15), 15**-0.5, dtype=np.float32)
    collapsed = dataclasses.replace(split, image_embeds=same, text_embeds=same)
    measured = measure_headline(predictions_of(collapsed, data_of(split).params))
    figures = constant(split)
    assert figures.keys() == HEADLINES
    for name in sorted(HEADLINES)[:3]:
        assert figures[name] == pytest.approx(measured[name])


def test_constant_grades_are_those_of_guessing(make_split):
    split = make_split(count=20_000)
    guessed = np.random.default_rng(7).integers(0, 5, 20_000)
    figures = constant(split)
    assert figures["zero_shot_kl.accuracy"] == pytest.approx(accuracy_score(split.grades, guessed), abs=0.01)
    kappa = cohen_kappa_score(split.grades, guessed, weights="quadratic")
    assert figures["zero_shot_kl.quadratic_weighted_kappa"] == pytest.approx(kappa, abs=0.02)


def test_text_prior_names_the_most_frequent_text_and_grade_of_train(pair):
    test, train = pair()
    test, train = (dataclasses.replace(split, batch_size=40) for split in (test, train))
    # grade 3, the most frequent in train, is the rarest in test
    train.rows["kl_grade"] = [3] * 60 + [0] * 50 + [4] * 50
    train.rows["text"] = [f"grade {grade}" for grade in train.rows["kl_grade"]]
    figures = text_prior(test, train)
    share = (test.grades == 3).mean()
    assert figures["retrieval.image_to_text.recall_at_1"] == pytest.approx(share)
    assert figures["zero_shot_kl.accuracy"] == share
    assert figures["zero_shot_kl.balanced_accuracy"] == pytest.approx(1 / 5)
    assert figures["zero_shot_kl.quadratic_weighted_kappa"] == 0
    assert figures["zero_shot_kl.macro_auroc"] == 0.5
    by_chance = np.mean([(test.grades == grade).mean() for grade in test.grades])
    assert figures["retrieval.text_to_image.recall_at_1"] == pytest.approx(by_chance)
    assert figures["contrastive_accuracy"] == pytest.approx((share + by_chance) / 2)


def test_text_prior_of_texts_that_train_does_not_hold_is_chance(pair):
    test, train = pair()
    train.rows["text"] = "something else"
    figures, chance = text_prior(test, train), constant(test)
    for name in sorted(HEADLINES)[:3]:
        assert figures[name] == pytest.approx(chance[name])


def test_nearest_pixels_equal_a_plain_loop(pair, random_pixels):
    test, train = pair()
    own, others = (thumbnails(random_pixels, split.numbers) for split in (test, train))
    nearest = np.array([np.square(others - image).sum(axis=1).argmin() for image in own])
    figures = pixel_neighbour(test, train, random_pixels)
    assert figures.keys() == HEADLINES
    assert figures["zero_shot_kl.accuracy"] == (train.grades[nearest] == test.grades).mean()
    right = [train.texts[neighbour] == text for neighbour, text in zip(nearest, test.texts, strict=True)]
    assert figures["retrieval.image_to_text.recall_at_1"] == pytest.approx(np.mean(right))


def test_nearest_pixels_find_copies_and_nothing_in_noise(pair, random_pixels):
    test, train = pair()
    noise = pixel_neighbour(test, train, random_pixels)
    assert noise["zero_shot_kl.quadratic_weighted_kappa"] == pytest.approx(0, abs=0.35)
    assert noise["contrastive_accuracy"] == pytest.approx(0.2, abs=0.12)
    patterns = random_pixels.pixels[:5]
    copies = ArrayPixels(np.concatenate([patterns[test.grades], patterns[train.grades]]))
    found = pixel_neighbour(test, train, copies)
    assert {found[name] for name in HEADLINES} == {1.0}


def test_a_text_that_train_does_not_hold_is_found_by_its_words(pair):
    test, train = pair()
    test.rows["text"] = [f"{text}, unlike any other: {row}" for row, text in enumerate(test.texts)]
    test = dataclasses.replace(test)  # without the texts that were read above
    patterns = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE), dtype=np.uint8)
    copies = ArrayPixels(np.concatenate([patterns[test.grades], patterns[train.grades]]))
    chance = 1 / 40
    assert pixel_neighbour(test, train, copies)["retrieval.image_to_text.recall_at_1"] > 3 * chance


def test_thumbnails_are_mean_greys_of_large_and_small_images():
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(1, 64, 64)
    expected = pixels.reshape(32, 2, 32, 2).mean(axis=(1, 3)).reshape(1, -1)
    np.testing.assert_allclose(thumbnails(ArrayPixels(pixels), np.array([0])), expected)
    assert thumbnails(ArrayPixels(pixels[:, :28, :28]), np.array([0])).shape == (1, 32 * 32)
    assert thumbnails(ArrayPixels(pixels), np.zeros(0, dtype=int)).shape == (0, 32 * 32)


def test_the_untrained_model_is_the_one_that_the_training_began_with(pair, data_of, backbones, random_pixels):
    test, _ = pair()
    trained, start = trained_model(backbones)
    data = dataclasses.replace(data_of(test), checkpoint=trained, pixels=random_pixels)
    torch.manual_seed(17)
    loaded = load_untrained(data, backbones)
    assert torch.initial_seed() == 17
    weights = loaded.model.state_dict()
    for name, tensor in start.state_dict().items():
        if name != "logit_bias":  # of no metric's order
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0, msg=name)
    figures = untrained(test, data, loaded)
    assert figures.keys() == HEADLINES
    assert figures["contrastive_accuracy"] < 0.45  # noise for images


def test_without_the_encoders_there_is_no_untrained_baseline(pair, data_of, random_pixels):
    test, train = pair()
    data = dataclasses.replace(data_of(test, train), pixels=random_pixels)
    assert {row["baseline"] for row in baselines_table(test, data, NOWHERE)} == {
        "constant",
        "text_prior",
        "pixel_neighbour",
    }


def test_other_or_damaged_encoders_are_told_and_left_out(pair, data_of, backbones, tmp_path, caplog):
    test, _ = pair()
    trained, _ = trained_model(backbones)
    other = dataclasses.replace(trained, model=torch.nn.Linear(2, 2))
    data = data_of(test)
    assert load_untrained(dataclasses.replace(data, checkpoint=other), backbones) is None
    assert "holds others than the model began with" in caplog.text
    assert load_untrained(dataclasses.replace(data, checkpoint=trained), tmp_path) is None
    assert "config.json does not exist" in caplog.text


def test_nothing_is_learnt_from_the_split_that_is_evaluated(pair, data_of, random_pixels):
    _, train = pair()
    data = dataclasses.replace(data_of(train), pixels=random_pixels)
    assert {row["baseline"] for row in baselines_table(train, data, NOWHERE)} == {"constant"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blind", ["test", "train"])
def test_without_grades_the_grading_is_left_out(pair, data_of, random_pixels, blind):
    test, train = pair()
    (test if blind == "test" else train).rows["kl_grade"] = None
    data = dataclasses.replace(data_of(test, train), pixels=random_pixels)
    metrics = baseline_metrics(baselines_table(test, data, NOWHERE))
    graded = {name.split(".")[1] for name in metrics if "zero_shot_kl" in name}
    assert graded == (set() if blind == "test" else {"constant"})
    assert "baseline.pixel_neighbour.contrastive_accuracy" in metrics


def test_a_single_grade_has_no_auroc(pair, random_pixels):
    test, train = pair()
    test.rows["kl_grade"] = 2
    for figures in (constant(test), text_prior(test, train), pixel_neighbour(test, train, random_pixels)):
        assert "zero_shot_kl.macro_auroc" not in figures
        assert "zero_shot_kl.accuracy" in figures


GOOD = {
    "contrastive_accuracy_ci_low": 0.5,
    "zero_shot_kl.quadratic_weighted_kappa_ci_low": 0.4,
    "baseline.constant.contrastive_accuracy": 0.1,
    "baseline.pixel_neighbour.contrastive_accuracy": 0.49,
    "baseline.constant.zero_shot_kl.quadratic_weighted_kappa": 0.0,
    "baseline.untrained.zero_shot_kl.accuracy": 0.9,
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, 1),
        ({"contrastive_accuracy_ci_low": 0.49}, 0),
        ({"zero_shot_kl.quadratic_weighted_kappa_ci_low": -0.01}, 0),
        ({"baseline.untrained.zero_shot_kl.quadratic_weighted_kappa": 0.6}, 0),
        ({"baseline.text_prior.contrastive_accuracy": 0.6}, 0),
    ],
)
def test_the_verdict_needs_both_metrics_above_every_baseline(changes, verdict):
    assert beats_baselines(GOOD | changes) == {"verdict.beats_baselines": verdict}


def test_the_verdict_of_what_is_there():
    matching = {name: value for name, value in GOOD.items() if "zero_shot_kl" not in name}
    assert beats_baselines(matching) == {"verdict.beats_baselines": 1}
    assert beats_baselines({"contrastive_accuracy_ci_low": 0.5}) == {}
    assert beats_baselines({"baseline.constant.contrastive_accuracy": 0.5}) == {}


def test_with_shuffled_images_no_baseline_is_beaten(make_split, data_of):
    split = make_split(count=640, wordings=20)
    data = data_of(split)
    assert _verdict(split, data) == 1
    assert _verdict(dataclasses.replace(split, image_embeds=shuffled(split.image_embeds)), data) == 0


def _verdict(split, data):
    measured = measure_headline(predictions_of(split, data.params))
    return beats_baselines(measured | baseline_metrics(baselines_table(split, data, NOWHERE)))[
        "verdict.beats_baselines"
    ]
