from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from knee_siglip.core.errors import UserError
from knee_siglip.model.training_facts import Likeness, TrainingFacts, heard, prompts_digest
from knee_siglip.params.files import parse_params
from knee_siglip.params.tasks import task_of
from knee_siglip.task.task import Finding, Labels, Task

LEARNED = {
    "rows": 5,
    "drawn_rows": 0,
    "patients": 3,
    "verdict": "learned",
    "signs": [],
    "temperature": None,
    "calibrated_on": 0,
    "prompts": "0" * 64,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"drawn_rows": 5}, ["trained on drawn knees"]),
        ({"drawn_rows": 2}, ["trained on drawn knees (2) and 3 others"]),
        ({"verdict": "failed", "signs": ["collapse", "few_rows"]}, ["its training failed (collapse, few rows)"]),
        ({"verdict": "doubtful", "signs": ["worse"]}, ["its training is doubtful (worse)"]),
    ],
)
def test_cautions_follow_from_the_facts(changed, said):
    assert TrainingFacts.model_validate(LEARNED | changed).cautions("knee") == said


def test_distance_is_that_of_mahalanobis_in_units_of_the_limit():
    rng = np.random.default_rng(0)
    mixing, mean = rng.normal(size=(3, 3)), rng.normal(size=3)
    precision = np.linalg.inv(mixing @ mixing.T)
    images = rng.normal(size=(4, 3))
    expected = [mahalanobis(image, mean, precision) / 2.5 for image in images]
    likeness = Likeness(mean, precision, 2.5)
    assert likeness.distances(images) == pytest.approx(expected)
    stored = Likeness.from_dict(likeness.to_dict(), width=3)
    assert stored.distances(images) == pytest.approx(expected, rel=1e-5)


def test_distance_is_relative_to_disarranged_images_where_the_checkpoint_knows_them():
    means, precisions = np.array([[0.0, 0.0], [3.0, 0.0]]), np.stack([np.eye(2), 4 * np.eye(2)])
    likeness = Likeness(means, precisions, 0.5)
    stored = Likeness.from_dict(likeness.to_dict(), width=2)
    for one in (likeness, stored):
        assert one.distances(np.array([[1.0, 0.0], [0.0, 4.0]])) == pytest.approx([1 / 4 / 0.5, 4 / 10 / 0.5])
        assert np.isfinite(one.distances(means)).all()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mean": torch.zeros(2, 3)}, "precision of its likeness"),
        ({"mean": torch.zeros(3, 3)}, "mean of its likeness"),
        ({"mean": torch.zeros(2)}, "mean of its likeness"),
        ({"precision": torch.full((3, 3), float("nan"))}, "precision of its likeness"),
        ({"precision": "eye"}, "precision of its likeness"),
        ({"limit": 0.0}, "limit of its likeness = 0.0"),
        ({"limit": float("inf")}, "limit of its likeness"),
    ],
)
def test_a_crafted_likeness_is_refused(changed, said):
    with pytest.raises(UserError, match=said):
        Likeness.from_dict({"mean": torch.zeros(3), "precision": torch.eye(3), "limit": 1.0} | changed, width=3)


def test_the_digest_changes_with_any_prompt_and_label():
    default = parse_params({})
    prompts = {label: [*texts] for label, texts in default.task.label_prompts.items()}
    prompts["4"][0] += " indeed"
    other = parse_params({"evaluate": {"label_prompts": prompts}})
    assert prompts_digest(task_of(default)) == prompts_digest(task_of(parse_params({"seed": 3})))
    assert prompts_digest(task_of(default)) != prompts_digest(task_of(other))


def test_words_are_known_in_either_number_and_function_words_say_nothing():
    facts = TrainingFacts.model_validate(LEARNED | {"words": ["effusion", "osteophytes"]})
    assert facts.unknown_words("an osteophyte with effusions 3") == []
    assert facts.unknown_words("a green bicycle of the effusion") == ["green", "bicycle"]


def test_prompts_of_words_that_no_training_text_holds_are_left_out_unless_none_would_be_left():
    facts = TrainingFacts.model_validate(LEARNED | {"words": ["knee", "mild", "normal", "effusion"]})
    finding = Finding(positive=["Effusion of the knee.", "Hydrops."], negative=["Dry."], text="effusion")
    task = Task(
        subject="knee",
        labels=Labels("grade", ("0", "1")),
        label_prompts=[["Normal knee.", "No abnormality."], ["Gonarthrosis.", "Osteophytes."]],
        findings={"effusion": finding},
    )
    found = heard(task, facts)
    assert found.label_prompts == [["Normal knee."], ["Gonarthrosis.", "Osteophytes."]]
    assert found.findings["effusion"] == replace(finding, positive=["Effusion of the knee."])
    assert heard(found, facts) == found
    assert heard(task, None) is task
    assert heard(task, TrainingFacts.model_validate(LEARNED)) == task
