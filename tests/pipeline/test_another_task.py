"""The whole pipeline in miniature on tasks that are not the knee's, chosen by params alone."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.params.files import parse_params
from stages_in_process import ROOT, run_stages

ROWS = {"train": 36, "val": 24, "test": 24}

SMALL: dict[str, Any] = {
    "image_size": 56,
    "data": {"csv": "rows.csv", "images": "images", "external": "elsewhere.csv"},
    "train": {"epochs": 1, "batch_size": 12},
}

HIP = {
    "task": {
        "subject": "hip",
        "label_column": "hip_grade",
        "label_title": "Grade of hip osteoarthritis",
        "label_short": "hip grade",
        "labels": {"none": "no osteoarthritis", "mild": "mild", "severe": "severe"},
        "positive": {"name": "arthritis", "title": "osteoarthritis", "lowest": "mild"},
        "label_patterns": {"none": "normal", "mild": "mild", "severe": "severe"},
        "side_words": "hip|joint",
        "queries": ["Normal hip.", "Severe osteoarthritis of the hip."],
    },
    "evaluate": {
        "label_prompts": {
            "none": ["Normal left hip.", "Normal right hip."],
            "mild": ["Mild osteoarthritis of left hip."],
            "severe": ["Severe osteoarthritis of left hip."],
        },
        "grounding": {"images": 2},
        "gallery": 2,
    },
}

CHEST = {"task": str(ROOT / "tasks/chest.yaml"), "evaluate": {"grounding": {"images": 2}, "gallery": 2}}


def hip_row(number: int) -> dict[str, str]:
    """Severer where the image is brighter; the first row contradicts itself in side and grade."""
    grade, side = ("none", "mild", "severe")[number % 3], ("left", "right")[number // 3 % 2]
    said = {"none": f"Normal {side} hip", "mild": f"Mild OA of {side} hip", "severe": f"Severe OA of {side} hip"}
    text = said[grade] if number else "Severe OA of right hip"
    return {"impression": f"{text}, image {number}.", "side": side, "hip_grade": grade}


def chest_row(number: int) -> dict[str, str]:
    """Two findings at once; `side` means something else here; a column `kl_grade` is nothing to this task."""
    air = "Left pneumothorax" if number % 3 else "Clear lungs"
    water = "with pleural effusion" if number % 2 else "without effusion"
    return {"impression": f"{air} {water}, image {number}.", "side": "bed", "kl_grade": "unread"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> Path:
    """The current folder, with a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "store"))
    return tmp_path


def run(folder: Path, task: dict[str, Any], row: Any, external: int = 0) -> dict[str, Any]:
    """Draw the images, run every stage; the metrics of the test split. external: images of a second test set."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir()
    splits = [split for split, count in (ROWS | {"external": external}).items() for _ in range(count)]
    for number, split in enumerate(splits):
        name = f"images/{number}.png"
        grey = 70 * (number % 3) + rng.integers(0, 60, (64, 64))
        Image.fromarray(grey.astype(np.uint8)).save(folder / name)
        rows.append({"img_path": name, "split": split, "patient_id": f"p{number}", **row(number)})
    table = pd.DataFrame(rows)
    table[table["split"] != "external"].to_csv(folder / "rows.csv", index=False)
    table[table["split"] == "external"].drop(columns="split").to_csv(folder / "elsewhere.csv", index=False)
    return run_stages(folder / "run", SMALL | task)


def words(page: Path) -> str:
    """What a reader sees, apart from the params and the project's own name."""
    html = re.sub(r"<(style|script|svg).*?</\1>|src=\"[^\"]*\"", "", page.read_text(), flags=re.DOTALL)
    return html.split("As in params.yaml.")[0].replace("knee-siglip", "").lower()


def test_hips_with_three_grades_in_words(project: Path) -> None:
    metrics = run(project, HIP, hip_row, external=12)
    out = project / "run"
    issues = pd.read_csv(out / "reports/validation/issues.csv", keep_default_na=False)
    said = issues.set_index("check")["message"]
    assert said["grade_contradiction"] == "hip_grade is none, but the impression says 'severe': grade severe"
    assert said["side_contradiction"].startswith("side is 'left', but the impression names only the right hip")
    assert set(issues["severity"]) == {"warning"}
    counts = json.loads((out / "reports/validation/metrics.json").read_text())["splits"]["test"]["hip_grades"]
    assert counts == {"none": 8, "mild": 8, "severe": 8}

    grading = metrics["zero_shot_hip"]
    assert {"accuracy", "accuracy_ci_low", "quadratic_weighted_kappa", "grade_severe", "arthritis"} <= grading.keys()
    assert metrics["baseline"]["constant"]["zero_shot_hip"]["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert {"calibration", "selective", "linear_probe", "knn", "robustness", "verdict"} <= metrics.keys()
    assert "zero_shot_kl" not in metrics
    predictions = pd.read_parquet(out / "evaluation/predictions.parquet")
    assert {"hip_score_none", "hip_probability_mild", "hip_grade", "hip_grade_predicted"} <= set(predictions)
    predictions = predictions[predictions["split"] == "test"]
    accuracy = (predictions["hip_grade"] == predictions["hip_grade_predicted"]).mean()
    assert grading["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert "hip_grade" in set(pd.read_csv(out / "evaluation/tables/subgroups.csv")["column"])

    results = pd.read_csv(out / "results.csv", keep_default_na=False)
    assert results.columns[-7:].tolist() == [
        "best_query",
        "hip_grade_predicted",
        "hip_probability",
        "distance_to_training",
        "status",
        "warnings",
        "cautions",
    ]
    assert set(results["hip_grade_predicted"]) <= {"none", "mild", "severe"}
    assert results["hip_probability"].between(1 / 3, 1).all()

    headline = json.loads((out / "headline.json").read_text())
    assert {"quadratic_weighted_kappa", "arthritis_auroc", "worst_grade_recall", "grades_predicted"} <= headline.keys()
    page = words(out / "evaluation/index.html")
    assert "predicts the right grade of hip osteoarthritis for" in page.lower()
    assert "grade severe (severe)" in page
    assert "none (no osteoarthritis)" in page
    for name in ("evaluation/index.html", "reports/validation/index.html"):
        assert not re.findall(r".{40}(?:knee|kellgren|kl grade).{40}", words(out / name))
    assert_second_test_set_is_beside_the_first(out)


def assert_second_test_set_is_beside_the_first(out: Path) -> None:
    """Twelve images of `elsewhere.csv`, in every stage's files, and in none that training reads."""
    assert len(pd.read_parquet(out / "manifest.parquet")) == sum(ROWS.values())
    assert len(pd.read_parquet(out / "external.parquet")) == 12
    external = json.loads((out / "evaluation/metrics.json").read_text())["external"]
    predictions = pd.read_parquet(out / "evaluation/predictions.parquet").query("split == 'external'")
    assert external["rows"] == len(predictions) == 12
    accuracy = (predictions["hip_grade"] == predictions["hip_grade_predicted"]).mean()
    assert external["zero_shot_hip"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    headline = json.loads((out / "headline.json").read_text())
    assert headline["external_contrastive_accuracy"] == external["contrastive_accuracy"]
    assert "a second test set with a csv of its own" in words(out / "evaluation/index.html")
    assert (out / "evaluation/cases/external.html").is_file()


def test_chests_without_grades_and_sides(project: Path) -> None:
    metrics = run(project, CHEST, chest_row)
    out = project / "run"
    issues = pd.read_csv(out / "reports/validation/issues.csv", keep_default_na=False)
    assert not {"unknown_side", "side_contradiction", "bad_label", "grade_contradiction"} & set(issues["check"])
    assert "kl_grades" not in json.loads((out / "reports/validation/metrics.json").read_text())["splits"]["test"]

    findings = metrics["zero_shot_findings"]
    assert findings["pneumothorax"]["n"] == ROWS["test"]
    assert {name: finding["prevalence"] for name, finding in findings.items()} == {
        "pneumothorax": pytest.approx(2 / 3, abs=1e-3),
        "effusion": 0.5,
    }
    assert metrics["graded_rows"] == 0
    assert {"contrastive_accuracy", "retrieval", "robustness", "baseline", "verdict"} <= metrics.keys()
    assert not {"zero_shot_kl", "zero_shot_grade", "zero_shot_", "calibration", "selective", "knn"} & metrics.keys()
    assert "predicted" not in " ".join(pd.read_parquet(out / "evaluation/predictions.parquet").columns)

    results = pd.read_csv(out / "results.csv")
    assert results.columns[-5:].tolist() == ["best_query", "distance_to_training", "status", "warnings", "cautions"]
    assert set(results["best_query"]) <= set(parse_params(CHEST).task.queries)
    assert "kl_grade_predicted" not in json.dumps(results.columns.tolist())

    headline = json.loads((out / "headline.json").read_text())
    assert "findings_auroc_mean" in headline
    assert not {"quadratic_weighted_kappa", "grade_accuracy", "oa_auroc", "grades_predicted"} & headline.keys()
    absent = (out / "evaluation/index.html").read_text().split("params.yaml turns it off: ")[1].split(".")[0]
    left_out = {"zero-shot grades", "calibration", "largest grading errors", "linear probes", "prompt sensitivity"}
    assert left_out <= set(absent.split(", "))
    for name in ("evaluation/index.html", "reports/validation/index.html"):
        assert not re.findall(r".{40}(?:knee|kellgren|kl grade).{40}", words(out / name))
