"""The files of an evaluation."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from PIL import Image

NOT_FOR_TRACKERS = {"facts.json", "examples.json"}


def files_below(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_recall_curve_rises_to_the_metrics(make_split, data_of, write, tmp_path):
    split = make_split(noise=2.0)
    write(data_of(split), tmp_path)
    curve = pd.read_csv(tmp_path / "plots/retrieval.csv", index_col="k")
    assert curve.index.tolist() == list(range(1, 51))
    assert (curve.diff().dropna() >= -1e-12).all(axis=None)
    assert curve.loc[5, "image_to_text"] == pytest.approx(split.searches["image_to_text"].recall_at(5).mean())


def test_two_evaluations_are_equal_bytes(make_split, data_of, write, tmp_path):
    for folder in ("a", "b"):
        write(data_of(make_split(), make_split(seed=1, name="val")), tmp_path / folder)
    names = sorted(path.relative_to(tmp_path / "a") for path in files_below(tmp_path / "a"))
    assert len(names) > 12
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_plots_and_examples_are_of_the_test_split_and_predictions_of_all(make_split, data_of, write, tmp_path):
    data = data_of(make_split(count=20, seed=1, name="val"), make_split(count=30), gallery=25)
    write(replace(data, params=data.params.model_copy(update={"splits": ["val", "test"]})), tmp_path)
    assert len(pd.read_csv(tmp_path / "plots/confusion.csv")) == 30
    assert len(json.loads((tmp_path / "examples.json").read_text())["gallery"]) == 25
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == 50
    baselines = pd.read_csv(tmp_path / "tables/baselines.csv")
    assert baselines["split"].unique().tolist() == ["val", "test"]


def test_without_grades_every_plot_has_its_columns(make_split, data_of, write, tmp_path):
    artifacts = write(data_of(make_split(graded=False)), tmp_path)
    assert (tmp_path / "figures").is_dir()
    assert (tmp_path / "plots/confusion.csv").read_text() == "actual,predicted\n"
    assert (tmp_path / "plots/risk_coverage.csv").read_text() == "coverage,risk\n"
    assert all(artifact.path.is_file() for artifact in artifacts)


def test_every_file_but_those_of_the_page_is_an_artifact(make_split, data_of, write, tmp_path):
    artifacts = write(data_of(make_split(noise=2.0), make_split(seed=1, name="val")), tmp_path)
    left = files_below(tmp_path) - {artifact.path for artifact in artifacts}
    assert {path.name for path in left if path.parent.name != "pictures"} == NOT_FOR_TRACKERS


def test_each_example_has_its_own_image(make_split, data_of, write, tmp_path):
    data = data_of(make_split(count=40, noise=2.0))
    for row in range(40):
        data.pixels[row] = row
    write(data, tmp_path)
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert len(examples["gallery"]) == data.params.gallery
    assert len(examples["mistakes"]) == 8
    for example in examples["gallery"] + examples["mistakes"]:
        assert example["img_path"] == f"images/{example['row']}.png"
        assert Image.open(tmp_path / example["picture"]).getextrema() == (example["row"], example["row"])


def test_nothing_of_an_older_evaluation_is_left(make_split, data_of, write, tmp_path):
    write(data_of(make_split()), tmp_path)
    write(data_of(make_split(graded=False)), tmp_path)
    assert not (tmp_path / "tables/calibration.csv").exists()
    assert not (tmp_path / "figures/confusion.png").exists()
