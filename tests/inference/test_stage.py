"""stages/infer.py from params to files, with the arithmetic model."""

import json
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core import paths
from knee_siglip.inference import predictor as predictor_module
from knee_siglip.inference.predictor import Predictor
from knee_siglip.tracking.tracker import Tracker

STAGE = Path(__file__).parents[2] / "stages" / "infer.py"


def write_task(folder: Path, grades: Iterable[int]) -> None:
    """A task whose prompts say at which brightness an image has the grades 0, 1 ..."""
    prompts = "".join(f"  '{label}': [grade {60 * grade}]\n" for label, grade in enumerate(grades))
    (folder / "task.yaml").write_text(f"subject: knee\nlabel_prompts:\n{prompts}")


@pytest.fixture
def stage(
    predictor: Predictor, grey_image: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], None]:
    """Runs the stage in a folder with params, a model file and a CSV of one good and one missing image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(f"img_path,site\n{grey_image(240).name},a\ngone.png,b\n")
    infer = "infer: {csv_path: in.csv, queries: [at 0, at 240]}"
    (tmp_path / "params.yaml").write_text(f"{infer}\ntask: task.yaml\ntracking: {{mlflow: none, wandb: none}}\n")
    write_task(tmp_path, range(5))
    (tmp_path / paths.BEST_MODEL).parent.mkdir()
    (tmp_path / paths.BEST_MODEL).write_bytes(b"weights")
    return lambda: runpy.run_path(str(STAGE))["main"]()


def test_images_that_dvc_does_not_watch_are_warned_of(
    stage: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage()
    told = capsys.readouterr().err
    assert "warning: images outside infer.images = data/sample/images: 2. When they change under an" in told
    assert f"name their folder: -S infer.images={tmp_path}" in told
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("csv_path: in.csv", f"csv_path: in.csv, images: {tmp_path}"))
    stage()
    assert "warning: images outside" not in capsys.readouterr().err


def test_stage_ends_well_and_counts_the_failed(stage: Callable[[], None]) -> None:
    stage()
    metrics = json.loads((paths.INFERENCE_REPORT / "metrics.json").read_text())
    assert metrics == {
        "rows": 2,
        "ok": 1,
        "failed": 1,
        "unlike_training_images": 0,
        "kl_grade_predicted": {"0": 0, "1": 0, "2": 0, "3": 0, "4": 1},
    }
    assert pd.read_csv(paths.INFERENCE_REPORT / "results.csv")["best_query"].fillna("").tolist() == ["at 240", ""]
    assert {path.name for path in paths.INFERENCE_REPORT.iterdir()} == {
        "results.csv",
        "studies.csv",
        "embeddings.npy",
        "embedding_ids.csv",
        "metrics.json",
        "speed.json",
    }


def test_stage_grades_with_the_prompts_of_today_not_with_those_of_the_training(
    stage: Callable[[], None], tmp_path: Path
) -> None:
    write_task(tmp_path, reversed(range(5)))
    stage()
    results = pd.read_csv(paths.INFERENCE_REPORT / "results.csv", dtype=str, keep_default_na=False)
    assert results["kl_grade_predicted"].tolist() == ["0", ""]


def test_stage_logs_the_figures_of_its_metrics_file(stage: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    files: list[str] = []
    monkeypatch.setattr(Tracker, "log_summary", lambda self, values: logged.update(values))
    monkeypatch.setattr(Tracker, "log_artifact", lambda self, path, kind, folder: files.append(path.name))
    stage()
    assert (logged["infer.rows"], logged["infer.failed"], logged["infer.kl_grade_predicted.4"]) == (2, 1, 1)
    assert files == ["results.csv"]


def test_stage_computes_in_the_precision_of_the_params(
    stage: Callable[[], None], predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    checkpoint = predictor.checkpoint
    monkeypatch.setattr(predictor_module, "load_checkpoint", lambda *given: asked.append(given[2]) or checkpoint)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("infer: {", "infer: {precision: bf16, "))
    stage()
    assert asked == ["bf16"]
