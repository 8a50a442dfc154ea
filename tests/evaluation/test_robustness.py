"""Headline figures on disturbed images: what is compared with what, and what a table holds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from knee_siglip.evaluation import robustness
from knee_siglip.evaluation.evaluate import embed
from knee_siglip.evaluation.robustness import robustness_report
from knee_siglip.metrics import bootstrap
from knee_siglip.metrics.grading import zero_shot_metrics
from knee_siglip.metrics.matching.retrieval import contrastive_accuracy
from knee_siglip.model.embedding import embed_pixels
from knee_siglip.pairs.disturbance import DISTURBANCES, Disturbance

METRICS = ["contrastive_accuracy", "zero_shot_kl.accuracy", "zero_shot_kl.quadratic_weighted_kappa"]


@pytest.fixture
def data(files, params):
    return embed(params, files, device="cpu")


def identity(pixels, _):
    return pixels.float()


def test_every_disturbance_has_a_line_for_each_metric_and_its_difference(data, monkeypatch):
    monkeypatch.setattr(bootstrap, "FEWEST_UNITS", 1)
    report = robustness_report(data.splits["test"], data)
    names = [("undisturbed", "")] + [(entry.condition, entry.level) for entry in DISTURBANCES]
    assert [(line["condition"], line["level"], line["metric"]) for line in report.table] == [
        (*name, metric) for name in names for metric in METRICS
    ]
    before = {line["metric"]: line["value"] for line in report.table[: len(METRICS)]}
    for line in report.table:
        assert line["difference"] == pytest.approx(line["value"] - before[line["metric"]])
        assert line["low"] <= line["value"] <= line["high"]


def test_too_few_patients_make_no_interval(data):
    report = robustness_report(data.splits["test"], data)
    assert {line["low"] for line in report.table} == {None}


def test_undisturbed_figures_are_those_of_the_split(data):
    split = data.splits["test"]
    values = {line["metric"]: line["value"] for line in robustness_report(split, data).table[: len(METRICS)]}
    grading = zero_shot_metrics(split.grade_probabilities[split.graded], split.grades)
    accuracy = contrastive_accuracy(split.image_embeds, split.text_embeds, split.correct, split.batch_size)
    assert values["contrastive_accuracy"] == pytest.approx(accuracy)
    assert values["zero_shot_kl.accuracy"] == pytest.approx(grading["accuracy"])
    assert values["zero_shot_kl.quadratic_weighted_kappa"] == pytest.approx(grading["quadratic_weighted_kappa"])


def test_a_disturbance_that_does_nothing_makes_no_difference(data, monkeypatch):
    monkeypatch.setattr(robustness, "DISTURBANCES", (Disturbance("nothing", "at all", identity),))
    table = robustness_report(data.splits["test"], data).table
    assert [line["difference"] for line in table] == [0] * 6


def test_disturbed_images_are_embedded_as_any_others(data, monkeypatch):
    """Another image for every one: the figures are those of its embeddings."""
    inverted = Disturbance("inverted", "", lambda pixels, _: 255 - pixels.float())
    monkeypatch.setattr(robustness, "DISTURBANCES", (inverted,))
    split = data.splits["test"]
    embeds = embed_pixels(data.checkpoint, [255 - data.pixels[split.numbers]])
    expected = contrastive_accuracy(embeds, split.text_embeds, split.correct, split.batch_size)
    assert robustness_report(split, data).table[len(METRICS)]["value"] == pytest.approx(expected)


def test_worst_figures_leave_inversion_out(data):
    report = robustness_report(data.splits["test"], data)
    for name, metric in (("contrastive_accuracy", METRICS[0]), ("quadratic_weighted_kappa", METRICS[2])):
        usual = [
            line["value"]
            for line in report.table
            if line["metric"] == metric and line["condition"] not in ("undisturbed", "inversion")
        ]
        assert report.metrics[f"robustness.worst_{name}"] == min(usual)


def test_equal_inputs_give_equal_tables_and_at_most_so_many_rows_count(data, monkeypatch):
    split = data.splits["test"]
    assert robustness_report(split, data) == robustness_report(split, data)
    seen = []

    def watch(pixels, keys):
        seen.append(len(pixels))
        return pixels.float()

    monkeypatch.setattr(robustness, "IMAGES", 5)
    monkeypatch.setattr(robustness, "DISTURBANCES", (Disturbance("watched", "", watch),))
    robustness_report(split, data)
    assert seen == [5]


def test_without_grades_there_is_no_grading(data):
    split = data.splits["test"]
    rows = split.rows.drop(columns="kl_grade")
    report = robustness_report(replace(split, rows=rows), data)
    assert {line["metric"] for line in report.table} == {"contrastive_accuracy"}
    assert set(report.metrics) == {"robustness.worst_contrastive_accuracy"}


def test_one_grade_for_all_has_no_kappa(data):
    split = data.splits["test"]
    rows = split.rows.assign(kl_grade=0)
    prompts = replace(split.prompts, grades=[split.prompts.grades[0]] * 5)
    report = robustness_report(replace(split, rows=rows, prompts=prompts), data)
    assert {line["metric"] for line in report.table} == set(METRICS[:2])
    assert all(math.isfinite(line["value"]) for line in report.table)


def test_it_can_be_turned_off(data):
    params = data.params.model_copy(update={"robustness": False})
    report = robustness_report(data.splits["test"], replace(data, params=params))
    assert report.metrics == {}
    assert report.table == []


def test_each_image_is_disturbed_in_its_own_way_whatever_rows_are_drawn(data, monkeypatch):
    """Keys are those of the manifest's rows."""
    keys = {}

    def watch(pixels, drawn):
        keys.update({image.tobytes(): int(key) for image, key in zip(pixels.numpy(), drawn, strict=True)})
        return pixels.float()

    monkeypatch.setattr(robustness, "DISTURBANCES", (Disturbance("watched", "", watch),))
    split = data.splits["test"]
    robustness_report(split, data)
    first = dict(keys)
    keys.clear()
    monkeypatch.setattr(robustness, "IMAGES", 3)
    robustness_report(split, data)
    assert len(keys) == 3
    assert keys.items() <= first.items()
    assert len(set(first.values())) == len(np.unique(data.pixels[split.numbers], axis=0)) == len(split)
    assert torch.tensor(list(first.values())).dtype == torch.int64
