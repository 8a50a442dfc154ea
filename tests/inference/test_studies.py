"""Results by study: the mean of a study's embeddings, whatever the table calls its images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.evaluation.groups.studies import study_split
from knee_siglip.inference.batch import Summary, infer_batch
from knee_siglip.inference.outputs import Outputs
from knee_siglip.inference.predictor import Predictor
from knee_siglip.inference.rows import read_rows

QUERIES = ["at 0", "at 240"]
Run = Callable[..., tuple[Summary, pd.DataFrame]]


@pytest.fixture
def run(predictor: Predictor, grey_image: Callable[[int], Path], tmp_path: Path) -> Run:
    """Runs a batch over a CSV, beside images of brightness 0, 120 and 240; its summary and its studies."""
    for value in (0, 120, 240):
        grey_image(value)

    def infer(csv: str, output: str = "results.csv") -> tuple[Summary, pd.DataFrame]:
        (tmp_path / "in.csv").write_text(csv)
        outputs = Outputs.beside(tmp_path / "out" / output)
        summary = infer_batch(predictor, read_rows(tmp_path / "in.csv"), QUERIES, outputs, batch_size=2)
        read = pd.read_parquet if outputs.is_parquet else lambda path: pd.read_csv(path, keep_default_na=False)
        return summary, read(outputs.studies).astype(str)

    return infer


def test_a_study_is_read_by_the_mean_of_its_images_and_names_its_views(run: Run, predictor: Predictor) -> None:
    csv = "img_path,study_id,patient_id,view\n240.png,S1,P,lateral\n120.png,S2,Q,ap\n0.png,s1,P,ap\n"
    summary, studies = run(csv)
    assert studies[["study_id", "patient_id", "view", "images", "img_path"]].to_numpy().tolist() == [
        ["S1", "P", "ap+lateral", "2", "240.png; 0.png"],
        ["S2", "Q", "ap", "1", "120.png"],
    ]
    assert studies["kl_grade_predicted"].tolist() == ["2", "2"]
    angle = np.pi / 4 * 240 / 255
    assert studies["similarity: at 0"].astype(float)[0] == pytest.approx(np.cos(angle), abs=1e-3)
    assert set(studies["status"]) == {"ok"}
    assert summary.metrics()["studies"] == 2


def test_studies_equal_those_of_evaluation(
    run: Run, predictor: Predictor, make_split: Callable[..., EmbeddedSplit], tmp_path: Path
) -> None:
    names, ids = ["0.png", "240.png", "120.png", "240.png", "0.png"], ["a", "b", "A ", "unknown", "a"]
    _, studies = run("img_path,study_id\n" + "".join(f"{name},{each}\n" for name, each in zip(names, ids, strict=True)))
    embeds = np.load(tmp_path / "out/embeddings.npy").astype(np.float32)
    split = make_split(5, graded=False)
    split = make_split(5, graded=False, image_embeds=embeds, rows=split.rows.assign(study_id=["a", "b", "A ", "", "a"]))
    wanted = study_split(split).image_embeds @ predictor.embed_queries(QUERIES).T
    found = studies[[f"similarity: {query}" for query in QUERIES]].astype(float).to_numpy()
    assert found == pytest.approx(wanted, abs=1e-6)
    assert studies["images"].tolist() == ["3", "1", "1"]


def test_columns_of_images_by_view_are_one_study_a_row(run: Run, tmp_path: Path) -> None:
    _, studies = run("img_path_ap,img_path_lateral,patient_id\n0.png,240.png,p\n120.png,,q\n")
    assert studies["view"].tolist() == ["ap+lateral", "ap"]
    _, studies = run("img_path,img_path_lateral,study_id\n0.png,240.png,x\n120.png,,y\n")
    assert studies["images"].tolist() == ["2", "1"]
    assert len(pd.read_csv(tmp_path / "out/results.csv")) == 3


def test_columns_by_view_of_a_parquet_table_are_read_too(predictor: Predictor, run: Run, tmp_path: Path) -> None:
    table = pd.DataFrame({"img_path_ap": ["0.png"], "img_path_lateral": ["240.png"]})
    table.to_parquet(tmp_path / "in.parquet")
    rows = list(read_rows(tmp_path / "in.parquet"))
    assert [file.name for _, file in rows] == ["0.png", "240.png"]


def test_a_study_rests_on_the_images_that_could_be_read(run: Run) -> None:
    _, studies = run("img_path,study_id\n0.png,one\ngone.png,one\nlost.png,none of them\n")
    assert studies["status"].tolist() == ["1 of 2 images could not be read", "none of its images could be read"]
    assert (studies["images"].tolist(), studies["best_query"].tolist()) == (["1", "0"], ["at 0", ""])
    assert studies["warnings"].tolist() == ["constant_image", ""]


def test_study_numbers_that_start_again_with_each_patient_mix_no_patients(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    _, studies = run("img_path,study_id,patient_id\n0.png,1,A\n240.png,1,B\n120.png,01,a\n0.png,2,A\n")
    assert studies[["study_id", "patient_id", "images"]].to_numpy().tolist() == [
        ["1", "A+a", "2"],
        ["1", "B", "1"],
        ["2", "A", "1"],
    ]
    assert "kept apart by patient" in caplog.text


def test_without_studies_there_is_a_header_alone(run: Run) -> None:
    summary, studies = run("img_path\n0.png\n")
    assert len(studies) == 0
    assert "studies" not in summary.metrics()


def test_parquet_results_have_parquet_studies(run: Run, tmp_path: Path) -> None:
    _, studies = run("img_path,study_id\n0.png,=a\n240.png,=a\n", "knees.parquet")
    assert studies["study_id"].tolist() == ["=a"]
    assert (tmp_path / "out/knees_studies.parquet").exists()
    _, studies = run("img_path,study_id\n0.png,=a\n240.png,=a\n")
    assert studies["study_id"].tolist() == ["'=a"]
