"""A model that learned little: what is said of it, of the cause, and of what to try."""

from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core.metrics_file import write_json
from knee_siglip.report.evaluation.diagnosis import remarks
from knee_siglip.report.write import spoken_verdict

KAPPA, PROBE = "zero_shot_kl.quadratic_weighted_kappa", "linear_probe.share_100.quadratic_weighted_kappa"
WORSE = {"name": "worse", "tone": "warning", "sentence": "It was best at epoch 2.", "advice": "Train on more images."}


def grade_all_alike(evaluation, grade="0"):
    path = evaluation.folder / "plots/confusion.csv"
    pd.read_csv(path, dtype=str).assign(predicted=grade).to_csv(path, index=False)


def test_a_model_that_learned_needs_no_remark(evaluation):
    evaluation.set_metrics({PROBE: 0.95})
    assert remarks(evaluation.results()) == []
    assert "remark" not in {row.get("class") for row in evaluation.page().of("p", "notice")}


def test_one_grade_for_all_is_told_with_the_probe_that_reads_it(evaluation):
    grade_all_alike(evaluation)
    evaluation.set_metrics({KAPPA: 0.0, PROBE: 0.57, "contrastive_accuracy_ci_low": 0.01})
    (remark,) = remarks(evaluation.results())
    count = len(pd.read_csv(evaluation.folder / "plots/confusion.csv"))
    assert remark.sentence == f"All {count} graded images of the test split get Kellgren-Lawrence grade 0."
    assert "A linear probe reads it from the image embeddings at kappa 0.57" in remark.advice
    assert "the image encoder has learned it, the text side has not" in remark.advice
    assert remark.sentence in evaluation.page().text


@pytest.mark.parametrize(
    ("figures", "cause"),
    [
        ({PROBE: 0.05}, "the image encoder has not learned it"),
        ({PROBE: 0.3, KAPPA: 0.15}, "at kappa 0.30. Try twice the train.steps"),
        ({PROBE: 0.6}, "Write evaluate.kl_prompts"),
        ({PROBE: 0.6, "contrastive_accuracy_ci_low": 0.01}, "the text side has not"),
        ({PROBE: None}, "could not be measured"),
    ],
)
def test_the_likely_cause_follows_from_the_measurements(evaluation, figures, cause):
    grade_all_alike(evaluation)
    metrics = {"baseline.constant.contrastive_accuracy": 0.1, "contrastive_accuracy_ci_low": 0.2, KAPPA: 0.0, **figures}
    evaluation.set_metrics(metrics)
    (remark,) = remarks(evaluation.results())
    assert cause in remark.advice


def test_grades_that_differ_may_still_be_far_behind_the_probe(evaluation):
    evaluation.set_metrics({KAPPA: 0.35, PROBE: 0.6})
    (remark,) = remarks(evaluation.results())
    assert (remark.tone, remark.sentence) == ("warning", "The prompts read the grade from the images at kappa 0.35.")
    evaluation.set_metrics({KAPPA: 0.1, PROBE: 0.15})
    assert remarks(evaluation.results())[0].tone == "error"


def test_the_terminal_says_the_gravest_of_all_and_where_the_rest_is(evaluation):
    evaluation.set_metrics({KAPPA: 0.0, PROBE: 0.05})
    grade_all_alike(evaluation)
    write_json(evaluation.live.with_name("verdict.json"), {"signs": [WORSE]})
    results = evaluation.results()
    assert [remark.tone for remark in remarks(results)] == ["error", "warning"]
    said = spoken_verdict(results, Path("p.html"))
    assert "\n" not in said
    assert said.index("graded images of the test split get") < said.index("Try twice the train.steps")
    assert said.endswith("1 more remark and all metrics: p.html")
    assert WORSE["sentence"] not in said
    assert WORSE["sentence"] in evaluation.page().text
