"""Findings: the truth of columns and texts, the scores, and the figures at both ends."""

import dataclasses
import json
import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation.embedded import PromptEmbeds
from knee_siglip.evaluation.findings import finding_truth, finding_truth_and_scores, is_affirmed, measure_findings
from knee_siglip.task.task import Finding

SEVERE = {"positive": ["severe"], "negative": ["normal"]}
BY_TEXT = {"severe": Finding(**SEVERE, text="grade 4")}


@pytest.fixture
def with_finding(make_split):
    """Grade 4 is the finding `severe`, looked for with a prompt that means it against one that means grade 0."""

    def make(**changes):
        anchors = np.eye(5, 6, dtype=np.float32)
        prompts = PromptEmbeds([anchors[grade : grade + 1] for grade in range(5)], {"severe": anchors[[4, 0]]})
        return make_split(prompts=prompts, **{"findings": BY_TEXT} | changes)

    return make


def test_figures_equal_scikit_learn(with_finding, data_of):
    split = with_finding(noise=0.8)
    metrics = measure_findings(split, data_of(split))
    truth = split.grades == 4
    score = split.image_embeds @ (split.prompts.findings["severe"][0] - split.prompts.findings["severe"][1])
    name = "zero_shot_findings.severe"
    assert metrics[f"{name}.auroc"] == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
    assert metrics[f"{name}.auprc"] == pytest.approx(average_precision_score(truth, score), abs=1e-4)
    assert metrics[f"{name}.prevalence"] == truth.mean()
    assert metrics[f"{name}.n"] == 160
    assert metrics[f"{name}.auroc_ci_low"] < metrics[f"{name}.auroc"] < metrics[f"{name}.auroc_ci_high"]


def test_shuffled_images_are_at_chance(with_finding, data_of):
    split = with_finding(count=2000, noise=0.1)
    shuffled = np.random.default_rng(0).permutation(2000)
    split = dataclasses.replace(split, image_embeds=split.image_embeds[shuffled])
    metrics = measure_findings(split, data_of(split))
    assert metrics["zero_shot_findings.severe.auroc"] == pytest.approx(0.5, abs=0.04)
    assert metrics["zero_shot_findings.severe.auroc_ci_low"] < 0.5 < metrics["zero_shot_findings.severe.auroc_ci_high"]


def test_two_knees_of_a_patient_widen_the_interval(with_finding, data_of):
    split = with_finding(noise=0.8)
    double = np.repeat(np.arange(160), 2)
    rows = split.rows.iloc[double].reset_index(drop=True)
    rows["patient_id"] = [f"patient {row}" for row in double]
    pairs = dataclasses.replace(split, rows=rows, image_embeds=split.image_embeds[double])
    alone = dataclasses.replace(pairs, rows=rows.assign(patient_id="", image_id=[f"{row:064x}" for row in range(320)]))
    widths = []
    for each in (pairs, alone):
        metrics = measure_findings(each, data_of(each))
        widths.append(
            metrics["zero_shot_findings.severe.auroc_ci_high"] - metrics["zero_shot_findings.severe.auroc_ci_low"]
        )
    assert widths[0] > 1.2 * widths[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["no such words", "grade"])
def test_a_finding_of_all_or_none_is_left_out(with_finding, data_of, text):
    split = with_finding(findings={"severe": Finding(**SEVERE, text=text)})
    assert measure_findings(split, data_of(split)) == {}
    truth, score = finding_truth_and_scores(split)["severe"]
    assert truth.shape == score.shape == (160,)


def test_no_findings_and_no_rows(with_finding, data_of):
    split = with_finding(findings={})
    assert measure_findings(split, data_of(split)) == {}


@pytest.mark.parametrize(
    ("cell", "present"),
    [
        *((cell, True) for cell in (1, 1.0, True, "1", "TRUE", " yes ", "Y", "present", "Positive")),
        *((cell, False) for cell in (0, 0.0, False, "0", "false", "No", "absent", "", None, float("nan"), "[]")),
        ('["effusion", "severe"]', True),
        ('["effusion"]', False),
        (json.dumps([{"finding": "severe", "box": [0, 0, 1, 1]}]), True),
        (json.dumps([{"finding": "severely", "box": [0, 0, 1, 1]}]), False),
    ],
)
def test_cells_of_a_column(with_finding, cell, present):
    split = with_finding(count=3)
    split.rows["seen"] = np.array([cell, "yes", "no"], dtype=object)
    truth = finding_truth(split, "severe", Finding(**SEVERE, column="seen"))
    assert truth.tolist() == [present, True, False]
    assert truth.dtype == bool


@pytest.mark.parametrize("cell", ["maybe", "7", "2.5", "{}", "[1, {}]", '{"a": 1', "null", "[" * 9_999], ids=len)
def test_a_cell_that_is_neither_yes_nor_no_is_named(with_finding, cell):
    split = with_finding(count=3)
    split.rows["seen"] = ["1", cell, "0"]
    with pytest.raises(UserError, match=rf"images/1\.png: seen = '{re.escape(cell)}' does not say .* severe"):
        finding_truth(split, "severe", Finding(**SEVERE, column="seen"))


def test_a_missing_column_is_named(with_finding):
    with pytest.raises(UserError, match=r"findings\.severe\.column = 'sen': the manifest has no such column"):
        finding_truth(with_finding(), "severe", Finding(**SEVERE, column="sen"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Joint effusion of left knee.", True),
        ("EFFUSION", True),
        ("No effusion.", False),
        ("No fracture, effusion or dislocation.", False),
        ("No evidence of a joint effusion.", False),
        ("Mild OA without joint effusion.", False),
        ("Joint effusion of right knee joint without OA.", True),
        ("No fracture. Small effusion.", True),
        ("No fracture; effusion.", True),
        ("No fracture but effusion.", True),
        ("Mild OA without chondrocalcinosis, with effusion.", True),
        ("No effusion on the left; effusion on the right.", True),
        ("Nodular effusion.", True),
        ("Normal knee.", False),
        ("", False),
    ],
)
def test_a_text_affirms_what_it_does_not_negate(text, said):
    assert is_affirmed("effusion", text, "evaluate.findings.effusion.text") == said
