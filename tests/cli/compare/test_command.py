"""`knee-siglip compare` on a small git and DVC project with an experiment, and on files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee_siglip.core.paths import PREDICTIONS
from knee_siglip.evaluation.headline import headlines
from knee_siglip.metrics.bootstrap import RESAMPLES
from processes import run_in, twice_at_once
from toys import KNEE

STAGE = f"""
stages:
  evaluate:
    cmd: mkdir -p {PREDICTIONS.parent} && cp ${{model}}.parquet {PREDICTIONS}
    params: [model]
    outs: [{PREDICTIONS}]
"""

Run = Callable[..., tuple[int, str, str]]


def predictions(wrong: float, seed: int = 0, rows: int = 80) -> pd.DataFrame:
    """Two knees per patient, the last ten rows in val; a model that is wrong about so many."""
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, rows)
    right = np.random.default_rng(seed).random(rows) >= wrong
    predicted = np.where(right, grades, (grades + 2) % 5)
    table = pd.DataFrame(
        {
            "img_path": [f"{row}.png" for row in range(rows)],
            "image_id": [f"{row:064x}" for row in range(rows)],
            "split": ["test"] * (rows - 10) + ["val"] * 10,
            "patient_id": [f"P{row // 2}" for row in range(rows)],
            "kl_grade": pd.array(grades, dtype="Int64"),
            "text": [f"grade {grade} of image {row}" for row, grade in enumerate(grades)],
            "kl_grade_predicted": predicted,
            "contrastive_batch": 0,
        }
    )
    for grade in range(5):
        table[f"kl_probability_{grade}"] = np.where(predicted == grade, 0.6, 0.1)
    for direction in ("image_to_text", "text_to_image"):
        table[f"contrastive_{direction}"] = table[f"{direction}_recall_at_1"] = right.astype(float)
    return table


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model on main (tag v1), a poor one as experiment `poorer`, on the branch `before` none; with a remote."""
    folder = tmp_path_factory.mktemp("project")
    run_in(folder, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "A User"), ("user.email", "user@example.org")):
        run_in(folder, "git", "config", key, value)
    run_in(folder, "dvc", "init", "-q")
    run_in(folder, "dvc", "remote", "add", "-q", "-d", "there", str(tmp_path_factory.mktemp("remote")))
    run_in(folder, "git", "commit", "-qam", "nothing yet")
    run_in(folder, "git", "branch", "before")
    predictions(0.1).to_parquet(folder / "good.parquet")
    predictions(0.6).to_parquet(folder / "poor.parquet")
    (folder / "params.yaml").write_text("model: good\n")
    (folder / "dvc.yaml").write_text(STAGE)
    run_in(folder, "dvc", "repro", "-q")
    run_in(folder, "git", "add", "--all")
    run_in(folder, "git", "commit", "-qm", "good")
    run_in(folder, "git", "tag", "v1")
    run_in(folder, "dvc", "exp", "run", "-q", "-n", "poorer", "-S", "model=poor")
    return folder


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, knee_siglip: Run, project: Path) -> Run:
    """Runs the command in the project; returns exit code, stdout and stderr."""
    monkeypatch.chdir(project)
    return lambda *arguments: knee_siglip("compare", *arguments)


def test_a_branch_and_an_experiment_are_one_table_of_100_columns(compare: Run) -> None:
    code, printed, _ = compare("main", "poorer")
    assert code == 0
    lines = printed.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[:3] == ["A: main", "B: poorer", "70 rows of 35 patients, split test"]
    for name in headlines(KNEE.labels):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        cells = line.split()
        assert len(cells) == 9
        assert float(cells[3]) == pytest.approx(float(cells[2]) - float(cells[1]), abs=0.0011)
        assert float(cells[4]) < float(cells[3]) < float(cells[6]) < 0
        assert float(cells[7]) <= float(cells[8]) < 0.05
    assert "p (Holm," in printed
    assert "7 metrics)" in printed


def test_json_holds_the_figures_unrounded(compare: Run) -> None:
    code, printed, _ = compare("v1", "workspace", "--json")
    answer = json.loads(printed)
    assert code == 0
    facts = {"a": "v1", "b": "workspace", "split": "test", "rows": 70, "patients": 35, "resamples": RESAMPLES}
    assert answer.items() >= facts.items()
    assert [row["metric"] for row in answer["metrics"]] == list(headlines(KNEE.labels))
    (accuracy,) = [row for row in answer["metrics"] if row["metric"] == "zero_shot_kl.accuracy"]
    tables = [predictions(wrong).iloc[:70] for wrong in (0.1, 0.6)]
    expected = [float((table["kl_grade"] == table["kl_grade_predicted"]).mean()) for table in tables]
    assert [accuracy["value_a"], accuracy["value_b"]] == pytest.approx(expected)
    assert accuracy["p_holm"] == pytest.approx(min(1, 7 * accuracy["p"]))


def test_revisions_experiments_and_files_are_the_same_thing(compare: Run, project: Path) -> None:
    pairs = [("main", "poorer"), ("v1", "workspace"), ("HEAD", "poor.parquet"), (project / "good.parquet", "poorer")]
    answers = [json.loads(compare(*pair, "--json")[1])["metrics"] for pair in pairs]
    assert all(answer == answers[0] for answer in answers)


def test_one_training_a_side_says_what_the_interval_leaves_out(compare: Run) -> None:
    said = "the chance of another seed is not in the interval (--a s0 s1 s2 --b t0 t1 t2)."
    assert f"One training each: {said}" in compare("main", "poorer")[1]


def test_several_trainings_a_side(compare: Run, project: Path) -> None:
    for seed in (1, 2):
        predictions(0.1, seed).to_parquet(project / f"good{seed}.parquet")
        predictions(0.6, seed).to_parquet(project / f"poor{seed}.parquet")
    sides = ["--a", "main", "good1.parquet", "good2.parquet", "--b", "poorer", "poor1.parquet", "poor2.parquet"]
    code, printed, _ = compare(*sides)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "A: main, good1.parquet, good2.parquet (mean of 3; sd: their standard deviation)"
    assert max(map(len, lines)) <= 110
    assert "2,000 resamples of patients, the same for A and B, and of runs; Student's t" in printed
    assert "not in the interval" not in printed
    (accuracy,) = [line.split() for line in lines if line.startswith("zero_shot_kl.accuracy ")]
    assert accuracy[2].startswith(".")
    answer = json.loads(compare(*sides, "--metric", "zero_shot_kl.accuracy", "--json")[1])
    assert answer["a"] == ["main", "good1.parquet", "good2.parquet"]
    (row,) = answer["metrics"]
    assert row["low"] < row["difference"] < row["high"] < 0
    assert float(accuracy[2]) == pytest.approx(row["spread_a"], abs=0.001)
    lopsided = compare("--a", "main", "--b", "poorer", "--b", "poor1.parquet", "--metric", "zero_shot_kl.accuracy")[1]
    assert "A is one training: the chance of another seed is not in the interval" in lopsided


def test_metrics_and_split_are_chosen_and_a_csv_written(compare: Run, tmp_path: Path) -> None:
    names = ["zero_shot_kl.quadratic_weighted_kappa", "contrastive_accuracy"]
    flags = [flag for name in names for flag in ("--metric", name)]
    code, printed, _ = compare("main", "poorer", "--split", "val", *flags, "--csv", tmp_path / "out.csv")
    assert code == 0
    assert "10 rows of 5 patients, split val" in printed
    assert "too few (5)" in printed
    assert "an interval and p need 10 patients" in printed
    table = pd.read_csv(tmp_path / "out.csv")
    assert table[["low", "high", "p", "p_holm"]].isna().all(axis=None)
    assert table["metric"].tolist() == names
    assert (table["difference"] == table["value_b"] - table["value_a"]).all()


def test_two_at_once_into_one_file_leave_it_whole(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    target = tmp_path / "difference.csv"
    first, second = twice_at_once(tmp_path, "compare", "v1", "poorer", "--csv", str(target))
    assert first[0] == 0, first
    assert second == first or second[1].startswith(f"error: another process is writing {target}"), second
    assert len(pd.read_csv(target)) == 7
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".txt", ".txt"]


def test_the_project_is_found_from_a_folder_in_it(compare: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project / "reports")
    assert compare("main", "workspace")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere", "main"], 2, "nowhere is no git revision, branch or tag, no DVC experiment (dvc exp list), nor a"),
        (["main", "before"], 1, f"before has no {PREDICTIONS}: it was evaluated by an older version, or not at all"),
        (["main", "gone.parquet"], 1, "gone.parquet does not exist"),
        (
            ["main", "poorer", "--split", "train"],
            1,
            "main: no predictions of the split train; there are: test, val",
        ),
        (["main", "poorer", "--metric", "loss"], 2, "loss is no headline metric; there are contrastive_accuracy, "),
        (["main", "poorer", "--csv", "no/such/folder.csv"], 2, "--csv no/such/folder.csv"),
        (["main", "words.parquet"], 1, "its column kl_grade_predicted holds no labels"),
        (["main", "other.parquet"], 1, "holds no predictions of this project: it lacks the column img_path"),
        (["main", "text.parquet"], 1, "the predictions of text.parquet cannot be read as predictions"),
        (["main", "fewer.parquet"], 1, "2 only in A (0.png, 1.png)"),
        (["main"], 2, "name two runs (REV_A REV_B), or the runs of both sides: --a s0 s1 s2 --b t0 t1 t2"),
        (["main", "--b", "poorer"], 2, "name two runs (REV_A REV_B), or the runs of both sides"),
        (["main", "v1", "--a", "v1", "--b", "poorer"], 2, "name two runs (REV_A REV_B), or the runs of both sides"),
        (["--a", "main", "main", "--b", "poorer"], 2, "main is named twice on one side"),
        (["--a", "main", "v1", "--b", "poorer"], 1, "A1 and A2 are the same model"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(
    compare: Run, project: Path, arguments: list[str], code: int, said: str
) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(project / "other.parquet")
    predictions(0.1).assign(kl_grade_predicted="two").to_parquet(project / "words.parquet")
    (project / "text.parquet").write_text("text")
    predictions(0.1).iloc[2:].to_parquet(project / "fewer.parquet")
    assert compare(*arguments)[0] == code
    printed = compare(*arguments)[2]
    assert said in printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1


def test_predictions_that_are_nowhere_are_told_from_a_wrong_revision(
    compare: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "clone"
    shutil.copytree(project, bare)
    shutil.rmtree(bare / ".dvc" / "cache")
    monkeypatch.chdir(bare)
    code, _, said = compare("poorer", "workspace")
    assert (code, "neither in DVC's cache nor in a remote" in said) == (1, True)
    (bare / PREDICTIONS).unlink()
    assert "dvc repro evaluate" in compare("workspace", "good.parquet")[2]
    run_in(project, "dvc", "push", "-q", "--all-tags")
    assert compare("v1", "poor.parquet")[0] == 0


def test_outside_of_a_project_only_files_can_be_named(
    compare: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = compare("main", "workspace")
    assert (code, "there is no DVC project here" in said) == (2, True)
    assert compare(project / "good.parquet", project / "poor.parquet")[0] == 0
