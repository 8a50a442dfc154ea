"""The first sentences say whether the model is worth anything, and where it is weakest."""

import shutil

from knee_siglip.core.nesting import nest
from knee_siglip.report.evaluation.verdict import Verdict, verdict
from knee_siglip.report.evaluation.wording import headline_words
from toys import KNEE


def said(evaluation) -> Verdict:
    return verdict(evaluation.results().shown)


def at_level(values: dict[str, float]) -> dict[str, float]:
    """The values with an interval of 0.05 to either side."""
    lows = {f"{name}_ci_low": value - 0.05 for name, value in values.items()}
    return values | lows | {f"{name}_ci_high": value + 0.05 for name, value in values.items()}


def test_a_good_model_is_told_what_it_can_do_beats_and_fails_at(evaluation) -> None:
    found = said(evaluation)
    assert found.tone == "warning"
    assert found.headline == (
        "The model ranks a right text first for 80 of 100 unseen images (95 % interval 75 to 85) and predicts the "
        "right Kellgren-Lawrence grade for 85 of 100 (95 % interval 80 to 90)."
    )
    assert found.advice.startswith("It beats chance and 3 other baselines in every headline metric measured")
    assert (
        "Weak spots: effusion, grade 2 (31 images): 38.7 % mistakes, 4.0 % elsewhere; side: right (33" in found.advice
    )
    assert "60.0 %, overall 85.0 %" in found.advice
    disturbed = "with “Shift, 10 % of the side” contrastive accuracy falls from 90.0 % to 50.0 %"
    assert disturbed in found.advice
    assert "with “Mild OA.” alone for grade 2, kappa falls from 0.90 to 0.60. None detected in: cal" in found.advice
    assert "Unchecked" not in found.advice


def test_a_model_without_a_weak_spot_is_good(evaluation) -> None:
    shutil.rmtree(evaluation.folder / "tables")
    found = said(evaluation)
    assert (found.tone, found.word) == ("good", "Usable")
    unchecked = "Unchecked: slices of the data, subgroups, disturbed images, prompt wording."
    assert found.advice.endswith(f"None detected in: calibration. {unchecked}")
    metrics = evaluation.json("metrics")
    del metrics["test"]["calibration"]
    evaluation.write("metrics", metrics)
    assert "None detected" not in said(evaluation).advice


def test_a_change_that_chance_explains_is_no_weak_spot(evaluation) -> None:
    evaluation.set_cells("robustness", slice(1, 3), p_holm=0.3)
    evaluation.set_cells("prompts", slice(1), kappa_high=0.1)
    evaluation.set_cells("slices", slice(None), flagged=False, worst=None)
    found = said(evaluation).advice
    fine = "None detected in: slices of the data, disturbed images, prompt wording, calibration"
    assert f"{fine} (a slice of 31 images would have been found from 30.0 % mistakes on)." in found


def test_a_collapsed_model_is_said_to_have_collapsed_first_of_all(evaluation) -> None:
    evaluation.set_metrics(
        {
            "zero_shot_kl.grades_predicted": 1,
            "zero_shot_kl.grade_0.recall": 1.0,
            "zero_shot_kl.quadratic_weighted_kappa": 0.0,
            "baseline.untrained.zero_shot_kl.quadratic_weighted_kappa": 0.31,
        }
    )
    found = said(evaluation)
    assert (found.tone, found.word) == ("error", "Unusable")
    assert found.headline == "This model has collapsed: all graded images of the test split get one grade."
    assert found.advice == "Before this training it did better: quadratic weighted kappa 0.31, now 0.00."
    evaluation.set_metrics({"baseline.untrained.zero_shot_kl.quadratic_weighted_kappa": -0.1})
    assert said(evaluation).advice.startswith("Before this training it did no better")


def test_texts_that_train_holds_are_no_new_wording(evaluation) -> None:
    seen = {"wordings.in_train": 0.99, "wordings.new.n": 4, "wordings.new.image_to_text.recall_at_1": 0.5}
    evaluation.set_metrics(seen)
    told = "99.0 % of the texts also stand in train, word for word: retrieval shows them recognised, not that new "
    assert told + "wording is understood (of 4 images with another text a right one comes first for 50.0 %)." in (
        said(evaluation).advice
    )
    evaluation.set_metrics({"wordings.new.image_to_text.recall_at_1_ci_units": 3})
    assert told + "wording is understood (4 images with another text are too few to tell)." in said(evaluation).advice
    evaluation.set_metrics({"wordings.in_train": 0.2})
    assert "word for word" not in said(evaluation).advice


def test_confidence_is_judged_as_inference_tells_it(evaluation) -> None:
    evaluation.set_metrics({"calibration.ece": 0.2})
    assert "confidence in the grade is off by 20.0 %" in said(evaluation).advice
    evaluation.set_metrics({"calibration.ece_scaled": 0.01})
    assert "is off by" not in said(evaluation).advice


def test_an_agreement_that_may_be_moderate_is_weak(evaluation) -> None:
    shutil.rmtree(evaluation.folder / "tables")
    evaluation.set_metrics({"zero_shot_kl.quadratic_weighted_kappa_ci_low": 0.55})
    assert said(evaluation).word == "Weak"
    assert "the interval of kappa begins at 0.55" in said(evaluation).advice


def test_a_model_trained_on_shuffled_texts_is_said_to_be_no_better_than_chance(evaluation) -> None:
    values = dict(zip(headline_words(KNEE), (0.21, 0.2, 0.19, 0.2, 0.2, 0.01, 0.51), strict=True))
    chance = {f"baseline.constant.{name}": 0.2 for name in list(headline_words(KNEE))[:5]}
    evaluation.write("metrics", {"test": nest(at_level(values) | chance)})
    page = evaluation.page()
    assert page.of("div", "verdict") == [{"class": "verdict error"}]
    assert page.text.index("This model is no better than chance.") < 150
    assert "ranks a right text first for 20 of 100" in page.text


def test_chance_by_definition_need_not_be_measured(evaluation) -> None:
    values = {"zero_shot_kl.quadratic_weighted_kappa": 0.02, "zero_shot_kl.macro_auroc": 0.52}
    evaluation.write("metrics", {"test": nest(at_level(values))})
    assert said(evaluation).headline == "This model is no better than chance."


def test_one_baseline_that_is_not_beaten_is_named_with_the_metric(evaluation) -> None:
    evaluation.set_metrics({"baseline.pixel_neighbour.contrastive_accuracy": 0.86})
    found = said(evaluation)
    lost = "the baseline “nearest neighbour by pixels” in contrastive accuracy."
    assert found.headline == f"This model is not clearly better than {lost}"
    assert found.tone == "error"


def test_the_measured_verdict_counts_more_than_one_baseline(evaluation) -> None:
    evaluation.set_metrics({"baseline.untrained.contrastive_accuracy": 0.86, "verdict.beats_baselines": 1})
    found = said(evaluation)
    assert found.tone == "warning"
    assert found.advice.startswith("Overall it beats every baseline, but it is not clearly better than")
    evaluation.set_metrics({"baseline.untrained.contrastive_accuracy": 0.2, "verdict.beats_baselines": 0})
    assert said(evaluation).headline == "This model does not beat every baseline."
