"""The headline metrics: in a fixed order, from three stages, as far as they were measured."""

from knee_siglip.core.nesting import nest
from knee_siglip.report.headline import headline_metrics
from toys import KNEE

EVALUATED = {
    "zero_shot_kl.quadratic_weighted_kappa": 0.89,
    "zero_shot_kl.quadratic_weighted_kappa_ci_low": 0.84,
    "zero_shot_kl.accuracy": 0.82,
    "zero_shot_kl.balanced_accuracy": 0.83,
    "zero_shot_kl.grade_0.recall": 0.9,
    "zero_shot_kl.grade_1.recall": 0.4,
    "zero_shot_kl.grades_predicted": 5,
    "zero_shot_kl.oa.auroc": 0.95,
    "contrastive_accuracy": 0.87,
    "retrieval.image_to_text.recall_at_1": 0.76,
    "retrieval.text_to_image.recall_at_1": 0.79,
    "zero_shot_findings.effusion.auroc": 0.9,
    "zero_shot_findings.cyst.auroc": 0.7,
    "zero_shot_findings.cyst.auroc_ci_low": 0.1,
    "linear_probe.share_100.quadratic_weighted_kappa": 0.93,
    "calibration.ece_scaled": 0.03,
    "robustness.worst_quadratic_weighted_kappa": 0.5,
    "verdict.beats_baselines": 1,
}
TRAINED = {"val": {"loss": 9.0}, "best": {"val_loss": 1.7}, "best_epoch": 6}


def test_they_are_in_the_order_in_which_people_read_them() -> None:
    found = headline_metrics({"test": nest(EVALUATED)}, TRAINED, {"errors": 0}, KNEE)
    assert list(found.items()) == [
        ("quadratic_weighted_kappa", 0.89),
        ("quadratic_weighted_kappa_ci_low", 0.84),
        ("contrastive_accuracy", 0.87),
        ("image_to_text_recall_at_1", 0.76),
        ("text_to_image_recall_at_1", 0.79),
        ("grade_accuracy", 0.82),
        ("balanced_accuracy", 0.83),
        ("worst_grade_recall", 0.4),
        ("grades_predicted", 5),
        ("oa_auroc", 0.95),
        ("findings_auroc_mean", 0.8),
        ("probe_kappa", 0.93),
        ("ece_scaled", 0.03),
        ("worst_disturbed_kappa", 0.5),
        ("beats_baselines", 1),
        ("val_loss", 1.7),
        ("best_epoch", 6),
        ("validation_errors", 0),
    ]


def test_without_grades_there_are_fewer() -> None:
    evaluated = {name: value for name, value in EVALUATED.items() if not name.startswith("zero_shot_kl")}
    found = headline_metrics({"test": nest(evaluated)}, TRAINED, {}, KNEE)
    assert "worst_grade_recall" not in found
    assert next(iter(found)) == "contrastive_accuracy"
    assert "validation_errors" not in found


def test_the_test_split_counts_and_another_only_in_its_place() -> None:
    val, test = {"contrastive_accuracy": 0.5}, {"contrastive_accuracy": 0.6}
    assert headline_metrics({"val": val, "test": test}, {}, {}, KNEE) == test
    assert headline_metrics({"val": val}, {}, {}, KNEE) == val
    assert headline_metrics({}, {}, {}, KNEE) == {}


def test_of_a_second_test_set_two_stand_beside_them() -> None:
    external = nest({"zero_shot_kl.quadratic_weighted_kappa": 0.71, "contrastive_accuracy": 0.5})
    found = headline_metrics({"test": nest(EVALUATED), "external": external}, TRAINED, {}, KNEE)
    assert (found["external_quadratic_weighted_kappa"], found["external_contrastive_accuracy"]) == (0.71, 0.5)
    assert found["quadratic_weighted_kappa"] == 0.89
