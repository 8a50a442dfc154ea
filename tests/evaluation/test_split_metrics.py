"""What is measured on a split, at both ends of quality and where something is undefined."""

import json
from dataclasses import replace

import numpy as np
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation.baselines import constant
from knee_siglip.evaluation.embedded import PromptEmbeds
from knee_siglip.evaluation.split_metrics import measure_retrieval, measure_wordings, prompts_table
from knee_siglip.metrics.grading import zero_shot_metrics
from knee_siglip.metrics.matching.similarity import cosine_scores

HEADLINES = (
    "contrastive_accuracy",
    "retrieval.image_to_text.recall_at_1",
    "retrieval.text_to_image.recall_at_1",
    "zero_shot_kl.accuracy",
    "zero_shot_kl.quadratic_weighted_kappa",
    "zero_shot_kl.macro_auroc",
)

PROMPTS = [*([f"grade {grade}"] for grade in range(4)), ["good", "bad"]]


def test_every_headline_lies_in_its_interval(make_split, measured):
    metrics = measured(make_split(noise=0.5, wordings=10))
    for name in HEADLINES:
        assert metrics[f"{name}_ci_low"] < metrics[name] < metrics[f"{name}_ci_high"], name


def test_all_names_of_the_contract_are_there(make_split, measured):
    metrics = measured(make_split())
    retrieval = [
        f"{definition}.{direction}.{figure}"
        for definition in ("retrieval", "retrieval_strict")
        for direction in ("image_to_text", "text_to_image")
        for figure in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mrr", "map")
    ]
    overall = ("accuracy", "balanced_accuracy", "adjacent_accuracy", "mae", "quadratic_weighted_kappa")
    by_grade = [f"grade_{grade}.{figure}" for grade in range(5) for figure in ("auroc", "auprc", "recall")]
    binary = [f"oa.{figure}" for figure in ("auroc", "auprc")]
    grading = (*overall, "macro_auroc", "macro_auprc", *by_grade, *binary)
    calibration = ["calibration.ece", "calibration.brier"]
    others = ["loss", "contrastive_accuracy_strict", *calibration]
    assert {*HEADLINES, *retrieval, *others, *(f"zero_shot_kl.{name}" for name in grading)} <= metrics.keys()


def test_texts_that_train_lacks_are_searched_apart(make_split, data_of):
    test, train = make_split(wordings=10, seed=1), make_split(wordings=8, seed=1, name="train")
    train.rows["text"] = [f"grade {row % 5} {row % 8}" for row in range(160)]
    metrics = measure_wordings(test, data_of(test, train))
    new = np.array([text not in set(train.texts) for text in test.texts])
    assert 10 < new.sum() < 80
    assert metrics["wordings.in_train"] == pytest.approx(1 - new.mean())
    assert metrics["wordings.new.n"] == new.sum()
    for direction, found in test.searches.items():
        name = f"wordings.new.{direction}.recall_at_1"
        assert metrics[name] == pytest.approx(found.recall_at(1)[new].mean())
    name = "wordings.new.image_to_text.recall_at_1"
    assert metrics[f"{name}_ci_low"] < metrics[name] < metrics[f"{name}_ci_high"]
    assert measure_wordings(train, data_of(train)) == measure_wordings(test, data_of(test)) == {}


def test_a_prompt_alone_has_a_paired_interval(make_split):
    split = make_split(label_prompts=PROMPTS)
    worse = replace(split.prompts, grades=[*split.prompts.grades[:4], split.prompts.grades[4].repeat(2, 0)])
    worse.grades[4][1] = -worse.grades[4][1]
    good, bad = prompts_table(replace(split, prompts=worse))[4:]
    assert bad["kappa_low"] <= bad["quadratic_weighted_kappa_difference"] <= bad["kappa_high"] < 0
    assert good["kappa_low"] <= good["quadratic_weighted_kappa_difference"] <= good["kappa_high"]


def test_a_perfect_model_is_perfect(make_split, measured):
    metrics = measured(make_split(noise=0.0))
    assert metrics["contrastive_accuracy"] == metrics["zero_shot_kl.quadratic_weighted_kappa"] == 1
    assert metrics["retrieval.text_to_image.mrr"] == metrics["retrieval.text_to_image.map"] == 1
    assert metrics["retrieval_strict.image_to_text.recall_at_1"] == pytest.approx(5 / 160)  # one share for each text
    assert metrics["contrastive_accuracy_strict"] < 0.2  # five texts for 64 pairs


def test_other_images_of_the_study_are_found_too(make_split, data_of):
    """Pairs of images whose texts are exchanged: right by study, wrong by text."""
    images = np.eye(40, dtype=np.float32)
    split = make_split(count=40, image_embeds=images, text_embeds=images[np.arange(40) ^ 1])
    split = replace(split, rows=split.rows.assign(text=[f"text {row}" for row in range(40)]))
    assert measure_retrieval(split, data_of(split))["retrieval.image_to_text.recall_at_1"] == 0
    split = replace(split, rows=split.rows.assign(study_id=[f"study {row // 2}" for row in range(40)]))
    metrics = measure_retrieval(split, data_of(split))
    assert metrics["retrieval.image_to_text.recall_at_1"] == metrics["retrieval.text_to_image.recall_at_1"] == 1
    assert metrics["retrieval_strict.image_to_text.recall_at_1"] == 0


def test_constant_embeddings_equal_the_baseline(make_split, measured):
    same = np.full((160, 6), 6**-0.5, dtype=np.float32)
    split = make_split(image_embeds=same, text_embeds=same, prompts=PromptEmbeds([same[:1]] * 5, {}))
    metrics = measured(split)
    assert metrics["contrastive_accuracy"] == pytest.approx(constant(split)["contrastive_accuracy"])
    assert metrics["contrastive_accuracy"] == pytest.approx(0.2, abs=0.03)
    assert metrics["retrieval.image_to_text.recall_at_1"] == pytest.approx(0.2, abs=0.03)
    assert metrics["zero_shot_kl.quadratic_weighted_kappa"] == pytest.approx(0)
    assert metrics["zero_shot_kl.macro_auroc"] == pytest.approx(0.5)


def test_the_loss_is_the_mean_over_full_batches_with_equal_texts_as_positives(make_split, measured):
    split = make_split(count=64)
    logits = split.logit_scale * split.image_embeds @ split.text_embeds.T + split.logit_bias
    signs = np.where(split.text_ids[:, None] == split.text_ids[None, :], 1, -1)
    assert measured(split)["loss"] == pytest.approx(np.log1p(np.exp(-signs * logits)).sum() / 64, rel=1e-5)


def test_a_ceiling_comes_with_alternatives_only(make_split, measured):
    split = make_split()
    assert "ceiling.contrastive_accuracy" not in measured(split)
    split.rows["text_alternatives"] = [json.dumps({text.upper(): 1.0}) for text in split.texts]  # normalised on reading
    assert measured(split)["ceiling.contrastive_accuracy"] == 1


def test_the_ceiling_feels_the_synonyms(make_split, measured):
    split = make_split()
    both = json.dumps({f"grade {grade}": 0.2 for grade in range(5)})
    split.rows["text_alternatives"] = [both] * 160
    metrics = measured(split)
    assert metrics["ceiling.contrastive_accuracy"] == pytest.approx(constant(split)["contrastive_accuracy"])


def test_a_damaged_alternative_names_its_row(make_split, measured):
    split = make_split(count=4)
    split.rows["text_alternatives"] = ['{"a": 1}', "[1]", '{"a": 1}', '{"a": 1}']
    with pytest.raises(UserError, match=r"images/1\.png: text_alternatives must be a JSON object"):
        measured(split)


@pytest.mark.filterwarnings("error")
def test_without_grades_the_grading_is_left_out(make_split, measured):
    metrics = measured(make_split(graded=False))
    assert metrics["graded_rows"] == 0
    assert not [name for name in metrics if name.startswith(("zero_shot_kl", "calibration"))]
    assert "contrastive_accuracy_ci_low" in metrics


@pytest.mark.filterwarnings("error")
def test_only_rows_with_a_valid_grade_are_graded(make_split, measured):
    split = make_split(noise=0.0)
    split.rows["kl_grade"] = ["", "9", None, "2.5", *split.rows["kl_grade"].astype(str)[4:]]
    metrics = measured(split)
    assert metrics["graded_rows"] == 156
    assert metrics["zero_shot_kl.accuracy"] == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_rows_are_enough(make_split, measured, count):
    metrics = measured(make_split(count=count))
    assert metrics["contrastive_batch_size"] == count
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.filterwarnings("error")
def test_a_single_grade_has_accuracy_but_no_auroc(make_split, measured):
    split = make_split(noise=0.0)
    split.rows["kl_grade"] = 3
    metrics = measured(split)
    assert "zero_shot_kl.accuracy" in metrics
    assert "zero_shot_kl.macro_auroc" not in metrics


def test_patients_of_two_knees_are_resampled_together(make_split, measured):
    split = make_split()
    alone = make_split()
    alone.rows["patient_id"] = ""
    assert measured(split)["patients"] == 80
    assert (measured(alone)["patients"], measured(alone)["images_of_unknown_patients"]) == (0, 160)


@pytest.fixture
def with_a_bad_prompt(make_split):
    """The second prompt of grade 4 means grade 0 as well."""
    anchors = np.eye(5, 6, dtype=np.float32)
    grades = [anchors[grade : grade + 1] for grade in range(4)] + [np.stack([anchors[4], anchors[0]])]
    return make_split(noise=0.1, prompts=PromptEmbeds(grades, {}), label_prompts=PROMPTS)


def test_each_prompt_has_a_row_and_stands_alone_for_its_grade(with_a_bad_prompt):
    split = with_a_bad_prompt
    table = prompts_table(split)
    assert [(row["grade"], row["prompt"]) for row in table] == [
        *((grade, f"grade {grade}") for grade in range(4)),
        (4, "good"),
        (4, "bad"),
    ]
    for row, prompt in ((table[4], 0), (table[5], 1)):
        scores = split.grade_scores.copy()
        scores[:, 4] = cosine_scores(split.image_embeds, split.prompts.grades[4])[:, prompt]
        assert row["accuracy"] == pytest.approx(zero_shot_metrics(scores, split.grades)["accuracy"])


def test_a_misleading_prompt_shows(with_a_bad_prompt):
    *_, good, bad = prompts_table(with_a_bad_prompt)
    assert bad["accuracy_difference"] < -0.1
    assert bad["quadratic_weighted_kappa_difference"] < -0.1
    assert good["accuracy"] == 1


def test_the_only_prompt_of_a_grade_differs_in_nothing(with_a_bad_prompt):
    for row in prompts_table(with_a_bad_prompt)[:4]:
        assert row["accuracy_difference"] == row["quadratic_weighted_kappa_difference"] == 0


def test_what_is_undefined_is_left_out(make_split):
    ungraded, single = make_split(graded=False), make_split(noise=0)
    assert prompts_table(ungraded) == []
    single.rows["kl_grade"] = single.predicted[0]
    assert all({"accuracy", "accuracy_difference"} <= row.keys() for row in prompts_table(single))
