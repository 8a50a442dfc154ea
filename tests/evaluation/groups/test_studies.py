"""Metrics of whole studies and of each view."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.groups.studies import (
    IMAGES,
    STUDIES,
    studies_table,
    study_metrics,
    study_predictions,
    study_split,
)
from knee_siglip.evaluation.measurement import measure_split
from knee_siglip.evaluation.predictions import predictions_of

METRICS = ("contrastive_accuracy", "retrieval.image_to_text.recall_at_1", "zero_shot_kl.quadratic_weighted_kappa")


@pytest.fixture
def make_studies(make_split):
    """Studies of an AP and a lateral view, of one patient each; texts and grades are the AP view's."""

    def make(noise=0.8, **changes):
        split = make_split(count=160, noise=noise, seed=3)
        ap = np.arange(160) // 2 * 2
        rows = split.rows.iloc[ap].reset_index(drop=True)
        rows["study_id"] = [f"study {row // 2}" for row in range(160)]
        rows["view"] = ["ap", "lateral"] * 80
        means = split.text_embeds[ap]
        noisy = means + noise * np.random.default_rng(0).normal(size=means.shape)
        images = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        return replace(split, rows=rows.assign(**changes), image_embeds=images, text_embeds=means)

    return make


def test_a_study_is_the_normalised_mean_of_its_images(make_studies):
    split = make_studies()
    studies = study_split(split)
    assert len(studies) == 80
    mean = split.image_embeds[:2].mean(axis=0)
    np.testing.assert_allclose(studies.image_embeds[0], mean / np.linalg.norm(mean), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(studies.image_embeds, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(studies.text_embeds, split.text_embeds[::2], rtol=1e-6)
    assert studies.rows["view"].tolist() == ["ap+lateral"] * 80
    assert studies.grades.tolist() == split.grades[::2].tolist()


def test_images_of_a_study_need_not_be_neighbours(make_studies):
    split = make_studies()
    order = np.random.default_rng(1).permutation(160)
    shuffled = replace(
        split,
        rows=split.rows.iloc[order].reset_index(drop=True),
        image_embeds=split.image_embeds[order],
        text_embeds=split.text_embeds[order],
    )
    found = dict(zip(study_split(split).rows["study_id"], study_split(split).image_embeds, strict=True))
    other = study_split(shuffled)
    for study, embed in zip(other.rows["study_id"], other.image_embeds, strict=True):
        np.testing.assert_allclose(embed, found[study], rtol=1e-6)


def test_different_labels_of_a_study_are_none_and_another_views_is_the_studys(make_studies):
    grades = pd.array([None, 2, 3, 4, 1, 1] + [0] * 154, dtype="Int64")
    studies = study_split(make_studies(kl_grade=grades))
    assert studies.rows["kl_grade"].tolist()[:4] == [2, pd.NA, 1, 0]


def test_two_texts_of_a_study_count_alike(make_studies):
    split = make_studies()
    texts = split.rows["text"].tolist()
    texts[:2] = ["lateral view normal", "ap view normal"]
    studies = study_split(replace(split, rows=split.rows.assign(text=texts)))
    assert studies.texts[0] == "ap view normal\nlateral view normal"
    mean = split.text_embeds[:2].mean(axis=0)
    np.testing.assert_allclose(studies.text_embeds[0], mean / np.linalg.norm(mean), rtol=1e-6)


def test_the_patient_of_one_view_is_the_studys(make_studies):
    patients = ["", "P1"] + [f"P{row // 2 + 1}" for row in range(2, 160)]
    assert study_split(make_studies(patient_id=patients)).units.counts == {"patient": 80, "study": 0, "image": 0}


def test_two_noisy_views_are_read_better_together(make_studies, data_of, tmp_path):
    split = make_studies()
    measured = measure_split(split, data_of(split), tmp_path / "no backbones")
    for name in METRICS:
        whole, single = measured.metrics[f"by_study.{name}"], measured.metrics[f"by_study.single_images.{name}"]
        assert whole > single + 0.05, name
        assert measured.metrics[f"by_study.{name}_ci_low"] < whole < measured.metrics[f"by_study.{name}_ci_high"]
    assert measured.metrics["by_study.n"] == 80
    assert measured.metrics["by_study.single_images.n"] == 160
    assert {measured.metrics[f"by_view.{view}.n"] for view in ("ap", "lateral")} == {80}
    assert measured.studies["images"].tolist() == [2] * 80


def test_values_of_a_view_are_those_of_its_rows(make_studies, data_of):
    split = make_studies()
    images = predictions_of(split, data_of(split).params)
    values = {row["metric"]: row["value"] for row in studies_table(split, images, images[:0]) if "ap" in row["group"]}
    assert values["retrieval.image_to_text.recall_at_1"] == images["image_to_text_recall_at_1"][::2].mean()


def test_small_groups_are_left_out(make_studies, data_of):
    split = make_studies(view=["ap"] * 131 + ["skyline"] * 29)
    images = predictions_of(split, data_of(split).params)
    table = studies_table(split, images, study_predictions(split, data_of(split).params))
    assert {row["group"] for row in table} == {STUDIES, IMAGES, "view ap"}


def test_without_studies_and_views_there_is_nothing(make_split, data_of, tmp_path):
    split = make_split()
    split = replace(split, rows=split.rows.assign(study_id=split.rows["image_id"], view="ap"))
    measured = measure_split(split, data_of(split), tmp_path / "no backbones")
    assert study_split(split) is None
    assert not len(measured.studies)
    assert not [name for name in measured.metrics if name.startswith("by_")]
    assert study_metrics([]) == {}
