"""The files of an evaluation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.report import confusion_rows, predictions, recall_curve, write_report
from knee_siglip.params import EvaluateParams


def test_one_prediction_row_per_image_with_probabilities_that_sum_to_one(make_split):
    split = make_split()
    table = predictions(split)
    probabilities = table[[f"kl_probability_{grade}" for grade in range(5)]].to_numpy()
    assert table["img_path"].tolist() == split.rows["img_path"].tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), table["kl_grade_predicted"])
    assert (table["rank_image_to_text"] == 1).mean() == pytest.approx((split.predicted == split.grades).mean())


def test_ungraded_images_are_predicted_but_not_in_the_confusion(make_split):
    split = make_split(count=10)
    split.rows.loc[:3, "kl_grade"] = pd.NA
    assert len(predictions(split)) == 10
    assert confusion_rows(split)["actual"].tolist() == split.rows["kl_grade"].iloc[4:].tolist()


def test_the_recall_curve_rises_to_the_metrics(make_split):
    split = make_split(noise=2.0)
    curve = recall_curve(split).set_index("k")
    assert curve.index.tolist() == list(range(1, 51))
    assert (curve.diff().dropna() >= -1e-12).all(axis=None)
    assert curve.loc[5, "image_to_text"] == split.image_to_text.recall_at(5).mean()


def test_two_reports_are_equal_bytes(make_split, data_of, tmp_path):
    for folder in ("a", "b"):
        write_report(data_of(make_split()), {"test": {"loss": 0.1}}, tmp_path / folder)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) == 5
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_plots_show_the_test_split_and_predictions_all(make_split, data_of, tmp_path):
    validation = make_split(count=20, seed=1, name="val")
    data = data_of(validation, make_split(count=30))
    write_report(replace(data, params=EvaluateParams(splits=["val", "test"])), {}, tmp_path)
    assert len(pd.read_csv(tmp_path / "plots/kl_confusion.csv")) == 30
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 50


def test_without_grades_there_is_no_figure_but_every_file_and_folder(make_split, data_of, tmp_path):
    artifacts = write_report(data_of(make_split(graded=False)), {}, tmp_path)
    assert (tmp_path / "figures").is_dir()
    assert (tmp_path / "plots/kl_confusion.csv").read_text() == "actual,predicted\n"
    assert all(artifact.path.is_file() for artifact in artifacts)


def test_a_number_that_json_cannot_hold_is_refused(make_split, data_of, tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(data_of(make_split(count=4)), {"test": {"loss": float("nan")}}, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
