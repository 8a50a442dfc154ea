"""Labels: their columns, their names in metrics, and the cells that hold them."""

import pytest

from knee_siglip.task.task import Labels

KL = Labels("kl_grade", ("0", "1", "2", "3", "4"))
WORDS = Labels("severity", ("none", "some"))


def test_the_knees_columns_and_metrics_keep_their_names() -> None:
    assert (KL.metrics, KL.predicted, KL.probability) == ("zero_shot_kl", "kl_grade_predicted", "kl_probability")
    assert (KL.probabilities[4], KL.scores[0]) == ("kl_probability_4", "kl_score_0")


@pytest.mark.parametrize("labels", [KL, WORDS])
def test_labels_are_known_again_from_a_table_of_predictions(labels: Labels) -> None:
    columns = ["img_path", labels.column, *labels.scores, *labels.probabilities, labels.predicted, "rank_predicted"]
    assert Labels.of_predictions(columns) == labels


def test_a_table_without_predicted_labels_has_none() -> None:
    assert not Labels.of_predictions(["img_path", "kl_grade", "kl_grade_predicted"])


@pytest.mark.parametrize(
    ("labels", "cell", "position"),
    [
        *((KL, cell, 3) for cell in ("3", 3, 3.0, "3.0", " 3 ")),
        *((KL, cell, -1) for cell in ("", "5", "-1", "III", "nan", "2.5", "1e999", None, float("nan"))),
        (WORDS, "some", 1),
        (WORDS, "Some", -1),
        (WORDS, "1", -1),
    ],
)
def test_a_cell_holds_a_label_or_nothing(labels: Labels, cell: object, position: int) -> None:
    assert labels.position(cell) == position


def test_labels_that_are_numbers_stay_numbers_in_tables() -> None:
    assert (KL.cell(4), WORDS.cell(1)) == (4, "some")
