"""The files of an evaluation."""

from dataclasses import replace

import pandas as pd
import pytest

from knee_siglip.evaluation.outputs import recall_curve, write_report


@pytest.fixture
def write(page_of, tmp_path):
    """Measure and write; returns the artifacts."""
    return lambda data, folder=tmp_path: write_report(data, page_of(data), folder)


def test_the_recall_curve_rises_to_the_metrics(make_split):
    split = make_split(noise=2.0)
    curve = pd.DataFrame(recall_curve(split)).set_index("k")
    assert curve.index.tolist() == list(range(1, 51))
    assert (curve.diff().dropna() >= -1e-12).all(axis=None)
    assert curve.loc[5, "image_to_text"] == split.searches["image_to_text"].recall_at(5).mean()


def test_two_reports_are_equal_bytes(make_split, data_of, write, tmp_path):
    for folder in ("a", "b"):
        write(data_of(make_split(), make_split(seed=1, name="val")), tmp_path / folder)
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(names) > 12
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_plots_show_the_test_split_and_predictions_all(make_split, data_of, write, tmp_path):
    data = data_of(make_split(count=20, seed=1, name="val"), make_split(count=30))
    write(replace(data, params=data.params.model_copy(update={"splits": ["val", "test"]})))
    assert len(pd.read_csv(tmp_path / "plots/kl_confusion.csv")) == 30
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == 50
    baselines = pd.read_csv(tmp_path / "tables/baselines.csv")
    assert baselines["split"].unique().tolist() == ["val", "test"]


def test_without_grades_every_plot_has_its_columns(make_split, data_of, write, tmp_path):
    artifacts = write(data_of(make_split(graded=False)))
    assert (tmp_path / "figures").is_dir()
    assert (tmp_path / "plots/kl_confusion.csv").read_text() == "actual,predicted\n"
    assert (tmp_path / "plots/risk_coverage.csv").read_text() == "coverage,risk\n"
    assert all(artifact.path.is_file() for artifact in artifacts)


def test_every_file_is_an_artifact(make_split, data_of, write, tmp_path):
    artifacts = write(data_of(make_split(), make_split(seed=1, name="val")))
    assert {artifact.path for artifact in artifacts} == {path for path in tmp_path.rglob("*") if path.is_file()}


def test_a_number_that_json_cannot_hold_is_refused(make_split, data_of, page_of, tmp_path):
    data = data_of(make_split(count=4))
    page = page_of(data)
    damaged = replace(page.splits[0], metrics={"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(data, replace(page, splits=[damaged]), tmp_path)
    assert not (tmp_path / "metrics.json").exists()
