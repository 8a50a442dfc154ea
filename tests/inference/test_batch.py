"""A batch: one row per input row whatever happens, files in place only at the end."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.imaging.decode.read import Decoded
from knee_siglip.inference import batch as batch_module
from knee_siglip.inference.batch import Summary, infer_batch, prepared_batches
from knee_siglip.inference.outputs import Outputs, OutputWriter, open_outputs
from knee_siglip.inference.predictor import Predictor
from knee_siglip.inference.rows import read_rows

QUERIES = ["at 0", "at 240"]
Run = Callable[..., Summary]


@pytest.fixture
def run(predictor: Predictor, tmp_path: Path) -> Run:
    """Runs a batch over a CSV of the given rows into out/results.csv."""

    def infer(csv: str, queries: list[str] = QUERIES, batch_size: int = 2) -> Summary:
        path = tmp_path / "in.csv"
        path.write_text(csv)
        return infer_batch(
            predictor, read_rows(path), queries, Outputs.beside(tmp_path / "out/results.csv"), batch_size
        )

    return infer


def test_every_row_has_its_scores_best_query_and_grade(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0), grey_image(240)
    summary = run("img_path,site\n240.png,x\n0.png,y\n240.png,z\n")
    results = pd.read_csv(tmp_path / "out/results.csv")
    assert results.columns.tolist() == [
        "img_path",
        "site",
        "similarity: at 0",
        "probability: at 0",
        "similarity: at 240",
        "probability: at 240",
        "best_query",
        "kl_grade_predicted",
        "kl_probability",
        "status",
    ]
    assert results["site"].tolist() == ["x", "y", "z"]
    assert results["best_query"].tolist() == ["at 240", "at 0", "at 240"]
    assert results["kl_grade_predicted"].tolist() == [4, 0, 4]
    assert results["similarity: at 240"].tolist() == pytest.approx([1, results["similarity: at 240"][1], 1])
    assert set(results["status"]) == {"ok"}
    assert summary.metrics() == {
        "rows": 3,
        "ok": 3,
        "failed": 0,
        "kl_grade_predicted": {"0": 1, "1": 0, "2": 0, "3": 0, "4": 2},
    }


def test_unreadable_images_get_a_row_with_their_error_and_the_run_goes_on(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0), grey_image(240)
    (tmp_path / "broken.png").write_bytes(b"no image")
    summary = run("img_path,site\n0.png,a\nbroken.png,b\ngone.png,c\n,d\n240.png,e\n")
    results = pd.read_csv(tmp_path / "out/results.csv", keep_default_na=False, dtype=str)
    assert results["status"].tolist()[::4] == ["ok", "ok"]
    assert "broken.png" in results["status"][1]
    assert "gone.png" in results["status"][2]
    assert results["status"][3] == "img_path is empty"
    assert set(results.loc[1:3, "similarity: at 0":"kl_probability"].to_numpy().ravel()) == {""}
    assert results["site"].tolist() == list("abcde")
    assert (summary.rows, summary.failed) == (5, 3)


def test_embeddings_are_float16_aligned_with_the_rows_and_nan_where_failed(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0), grey_image(240)
    run("img_path\n240.png\ngone.png\n0.png\n")
    embeddings = np.load(tmp_path / "out/embeddings.npy")
    ids = pd.read_csv(tmp_path / "out/embedding_ids.csv", keep_default_na=False)
    assert (embeddings.dtype, embeddings.shape) == (np.float16, (3, 2))
    assert embeddings[2] == pytest.approx([1, 0], abs=1e-3)
    assert np.isnan(embeddings[1]).all()
    assert not np.isnan(embeddings[[0, 2]]).any()
    assert ids["img_path"].tolist() == ["240.png", "gone.png", "0.png"]
    assert [len(image_id) for image_id in ids["image_id"]] == [64, 0, 64]
    assert ids["row"].tolist() == [0, 1, 2]


def test_results_do_not_depend_on_the_batch_size(run: Run, grey_image: Callable[[int], Path], tmp_path: Path) -> None:
    csv = "img_path\n" + "\n".join(grey_image(value).name for value in range(0, 250, 25)) + "\n"
    contents = []
    for batch_size in (1, 3, 100):
        run(csv, batch_size=batch_size)
        contents.append((tmp_path / "out/results.csv").read_text())
    assert contents[0] == contents[1] == contents[2]


def test_surprise_of_a_decoder_is_that_rows_error(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes, path: Path) -> Decoded:
        raise KeyError("no such tag")

    monkeypatch.setattr(batch_module, "decode", decode)
    grey_image(0)
    assert run("img_path\n0.png\n").failed == 1
    assert "KeyError" in (tmp_path / "out/results.csv").read_text()


def test_failed_run_leaves_the_old_results_and_keeps_what_it_had_done(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey_image(0)
    run("img_path\n0.png\n")
    before = (tmp_path / "out/results.csv").read_text()
    calls = []

    def embed_images(self: Predictor, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) == 2:
            raise UserError("out of memory")
        return np.array([[1.0, 0.0]] * len(pixels), dtype=np.float32)

    monkeypatch.setattr(Predictor, "embed_images", embed_images)
    with pytest.raises(UserError, match="out of memory"):
        run("img_path\n0.png\n0.png\n0.png\n")
    assert (tmp_path / "out/results.csv").read_text() == before
    (partial,) = (tmp_path / "out").glob("results.csv.*.partial")
    assert len(partial.read_text().splitlines()) == 1 + 2


def test_nothing_partial_is_left_after_a_finished_run(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0)
    run("img_path\n0.png\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "embedding_ids.csv",
        "embeddings.npy",
        "results.csv",
    ]


def test_results_of_an_earlier_run_can_be_the_input(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0)
    run("img_path\n0.png\n")
    run((tmp_path / "out/results.csv").read_text())
    columns = pd.read_csv(tmp_path / "out/results.csv").columns
    assert columns.is_unique
    assert {"input_status", "status", "input_best_query"} <= set(columns)


def test_decoding_runs_only_a_few_batches_ahead(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    monkeypatch.setattr(batch_module, "prepare_image", lambda file, transform: decoded.append(1))
    monkeypatch.setattr(batch_module, "available_cores", lambda: 2)
    batches = prepared_batches([None] * 1000, predictor.transform, batch_size=10)
    next(batches)
    assert len(decoded) <= 10 * (1 + batch_module.BATCHES_AHEAD)
    assert sum(len(images) for images in batches) == 990


def test_output_names_follow_the_results_file() -> None:
    assert Outputs.beside(Path("a/results.csv")).embeddings == Path("a/embeddings.npy")
    other = Outputs.beside(Path("a/site2.csv"))
    assert (other.embeddings, other.ids) == (Path("a/site2_embeddings.npy"), Path("a/site2_embedding_ids.csv"))


def test_two_runs_with_the_same_outputs_do_not_mix_their_rows(tmp_path: Path) -> None:
    outputs = Outputs.beside(tmp_path / "results.csv")

    def write(writer: OutputWriter, name: str) -> None:
        writer.write([[name]], [name], np.full((1, 2), ord(name), np.float32))

    with open_outputs(outputs, ["img_path"], 2, 2) as first:
        write(first, "a")
        with open_outputs(outputs, ["img_path"], 1, 2) as second:
            write(second, "b")
        write(first, "a")
    assert outputs.results.read_text() == "img_path\na\na\n"
    assert outputs.ids.read_text() == "row,img_path,image_id\n0,a,a\n1,a,a\n"
    assert np.load(outputs.embeddings).tolist() == [[97, 97], [97, 97]]


def test_unwritable_output_is_one_sentence(
    predictor: Predictor, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text(f"img_path\n{grey_image(0).name}\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        infer_batch(
            predictor, read_rows(tmp_path / "in.csv"), QUERIES, Outputs.beside(tmp_path / "file/results.csv"), 2
        )


def test_metrics_hold_nothing_that_differs_from_run_to_run(run: Run, grey_image: Callable[[int], Path]) -> None:
    grey_image(0)
    first, second = (json.dumps(run("img_path\n0.png\n").metrics()) for _ in range(2))
    assert first == second
