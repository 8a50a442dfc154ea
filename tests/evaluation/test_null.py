"""A model that knows nothing, of images and texts that were shuffled apart: all is at chance, and the page says so."""

from dataclasses import replace

import numpy as np
import pytest

from knee_siglip.core.nesting import flatten
from knee_siglip.evaluation.baselines import constant
from knee_siglip.evaluation.headline import headlines
from knee_siglip.report.evaluation.results import read_results
from knee_siglip.report.evaluation.verdict import verdict
from toys import KNEE

GRADING = {
    "zero_shot_kl.accuracy": 0.2,
    "zero_shot_kl.balanced_accuracy": 0.2,
    "zero_shot_kl.quadratic_weighted_kappa": 0.0,
    "zero_shot_kl.macro_auroc": 0.5,
}


@pytest.fixture(scope="module")
def seeds():
    return np.random.default_rng(11)


@pytest.fixture
def shuffled(make_split, seeds):
    """Splits whose images belong to other rows' texts and grades; any embedding is as good as before."""

    def make(name, count):
        split = make_split(count=count, wordings=20, noise=0.3, seed=count, name=name)
        return replace(split, image_embeds=split.image_embeds[seeds.permutation(count)])

    return make


@pytest.fixture
def measured_and_read(write, tmp_path):
    """The test split as the report reads it."""

    def through_files(data):
        write(data)
        return read_results(tmp_path / "report", tmp_path).shown

    return through_files


def test_every_metric_is_at_chance_and_the_report_says_so(measured_and_read, shuffled, data_of):
    split = measured_and_read(data_of(shuffled("test", 640), shuffled("train", 600), shuffled("val", 200)))
    metrics = flatten(split.metrics)
    chance = constant(shuffled("test", 640)) | GRADING
    for name in headlines(KNEE.labels):
        low, high = metrics[f"{name}_ci_low"], metrics[f"{name}_ci_high"]
        # seven intervals of 95 %: one or the other misses by a little; and 100 texts for 640 rows hit or miss together
        margin = max((high - low) / 2, 0.02)
        assert low - margin <= chance[name] <= high + margin, (name, low, chance[name], high)
    for name in ("linear_probe.share_100.quadratic_weighted_kappa", "knn.quadratic_weighted_kappa"):
        assert metrics[name] == pytest.approx(0, abs=0.12)
    assert metrics["zero_shot_kl.oa.auroc"] == pytest.approx(0.5, abs=0.06)
    assert metrics["selective.accuracy_at_80_percent"] == pytest.approx(0.2, abs=0.05)
    assert metrics["subgroups.flagged"] == 0
    assert metrics["verdict.beats_baselines"] == 0
    assert verdict(split).headline == "This model is no better than chance."


def test_the_same_model_without_the_shuffling_is_said_to_be_better(measured_and_read, make_split, data_of):
    split = measured_and_read(data_of(make_split(count=640, wordings=20, noise=0.3)))
    assert split.metrics["verdict"]["beats_baselines"] == 1
    assert verdict(split).tone != "error"
