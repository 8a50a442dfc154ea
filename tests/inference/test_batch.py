"""A batch: one row per input row whatever happens, files in place only at the end."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import sha256
from knee_siglip.imaging.decode.read import Decoded
from knee_siglip.inference import batch as batch_module
from knee_siglip.inference import outputs as outputs_module
from knee_siglip.inference import predictor as predictor_module
from knee_siglip.inference.batch import Summary, infer_batch, scored_batches
from knee_siglip.inference.outputs import Outputs, Part, open_part
from knee_siglip.inference.predictor import Predictor
from knee_siglip.inference.rows import read_rows
from knee_siglip.model.training_facts import Likeness
from knee_siglip.tables.manifest import MADE_COLUMNS

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
        "distance_to_training",
        "status",
        "warnings",
        "cautions",
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
        "unlike_training_images": 0,
        "kl_grade_predicted": {"0": 1, "1": 0, "2": 0, "3": 0, "4": 2},
    }


def test_an_image_that_changed_since_its_validation_gets_no_grade(
    predictor: Predictor, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    files = [grey_image(0), grey_image(240)]
    rows = pd.DataFrame({"img_path": ["0.png", "240.png"], "split": "test"})
    made = {"image_file": [str(file) for file in files], "image_id": [sha256(file) for file in files]}
    rows.assign(**(dict.fromkeys(MADE_COLUMNS, "") | made)).to_parquet(tmp_path / "manifest.parquet")
    Image.new("L", (28, 28), 120).save(files[1])
    table = read_rows(tmp_path / "manifest.parquet", "test")
    summary = infer_batch(predictor, table, QUERIES, Outputs.beside(tmp_path / "out/results.csv"), 2)
    results = pd.read_csv(tmp_path / "out/results.csv")
    assert summary.failed == 1
    assert results["status"].tolist() == [
        "ok",
        f"{files[1]}: has changed since it was validated; run dvc repro validate",
    ]
    assert pd.isna(results["kl_grade_predicted"][1])


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
    assert (summary.done.rows, summary.failed) == (5, 3)


def test_an_unreadable_image_leaves_the_batch_as_large_as_it_is(
    run: Run, grey_image: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLAS adds in another order for fewer rows: the neighbours' last digits would depend on it."""
    grey_image(0), grey_image(240)
    embed, sizes = Predictor.embed_images, []
    monkeypatch.setattr(
        Predictor, "embed_images", lambda self, pixels: sizes.append(len(pixels)) or embed(self, pixels)
    )
    summary = run("img_path\n0.png\ngone.png\n240.png\n")
    assert sorted(sizes) == [1, 2]  # two at a time
    assert (summary.failed, summary.done.unlike) == (1, 0)


def test_images_that_look_wrong_are_named_and_graded_all_the_same(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0)
    y, x = np.indices((64, 64)) - 32
    bright_in_the_middle = 230 * np.exp(-(x**2 + y**2) / 288) + 10
    Image.fromarray(bright_in_the_middle.astype(np.uint8)).save(tmp_path / "fine.png")
    run("img_path\n0.png\nfine.png\ngone.png\n")
    results = pd.read_csv(tmp_path / "out/results.csv", keep_default_na=False, dtype=str)
    assert results["warnings"].tolist() == ["constant_image", "", ""]
    assert results["status"].tolist()[:2] == ["ok", "ok"]


def test_images_unlike_the_training_are_named_and_counted(
    run: Run, predictor: Predictor, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0), grey_image(240)
    predictor.checkpoint.likeness = Likeness(np.array([1.0, 0.0]), np.eye(2), 0.5)  # embeddings of brightness 0
    summary = run("img_path\n0.png\n240.png\ngone.png\n")
    results = pd.read_csv(tmp_path / "out/results.csv", keep_default_na=False)
    assert [float(cell) > 1 for cell in results["distance_to_training"][:2]] == [False, True]
    assert results["warnings"].tolist() == ["constant_image", "constant_image unlike_training_images", ""]
    assert results["cautions"][0].startswith("not for clinical use")
    assert results["cautions"][1].startswith("unlike the training images; not for clinical use")
    assert results["cautions"][2] == ""
    assert summary.metrics()["unlike_training_images"] == 1


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


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were encoded; the encoder runs out of memory when 0 is in front."""
    sizes: list[int] = []
    encode = Predictor.embed_images

    def embed_images(self: Predictor, pixels: np.ndarray) -> np.ndarray:
        if sizes[:1] == [0] and len(sizes) > 3:
            raise UserError("out of memory")
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(Predictor, "embed_images", embed_images)
    monkeypatch.setattr(batch_module, "available_cores", lambda: 1)
    monkeypatch.setattr(outputs_module, "ROWS_AT_RISK", 2)
    return sizes


Files = dict[str, bytes]


def read_files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def interrupted(run: Run, grey_image: Callable[[int], Path], tmp_path: Path, embedded: list[int]) -> tuple[str, Files]:
    """A CSV, and what an undisturbed run makes of it; a second run has ended before its last images."""
    csv = "img_path\n" + "\n".join(grey_image(value).name for value in range(0, 200, 20)) + "\ngone.png\n"
    run(csv)
    whole = read_files(tmp_path / "out")
    embedded[:] = [0]
    with pytest.raises(UserError, match="out of memory"):
        run(csv)
    return csv, whole


def test_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    run: Run, interrupted: tuple[str, Files], tmp_path: Path, embedded: list[int]
) -> None:
    csv, whole = interrupted
    assert read_files(tmp_path / "out") == whole  # the old results stay until the new ones are done
    before = sum(embedded)
    part = tmp_path / "out/results.csv.partial/0-of-1/results.csv"
    part.write_bytes(part.read_bytes() + b"half a ro")
    embedded.clear()
    summary = run(csv)
    assert (before, sum(embedded)) == (6, 4)
    assert (summary.metrics()["rows"], summary.failed, summary.computed) == (11, 1, 5)
    assert summary.metrics()["kl_grade_predicted"] == dict(zip("01234", (2, 3, 3, 2, 0), strict=True))
    assert read_files(tmp_path / "out") == whole
    assert not part.parent.parent.exists()


@pytest.mark.parametrize("name", ["results.csv", "embeddings.npy", "embedding_ids.csv", "journal.jsonl", "key"])
def test_a_flipped_bit_in_what_was_done_is_not_taken(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, embedded: list[int], name: str
) -> None:
    csv = "img_path\n" + "\n".join(grey_image(value).name for value in range(0, 200, 20)) + "\n"
    run(csv)
    whole = read_files(tmp_path / "out")
    embedded[:] = [0]
    with pytest.raises(UserError, match="out of memory"):
        run(csv)
    part = tmp_path / "out/results.csv.partial/0-of-1" / name
    data = bytearray(part.read_bytes())
    data[-10] ^= 0x80
    part.write_bytes(data)
    embedded.clear()
    run(csv)
    assert sum(embedded) == 10
    assert read_files(tmp_path / "out") == whole


def test_a_journal_cut_within_its_last_line_is_gone_on_with(
    run: Run, interrupted: tuple[str, Files], tmp_path: Path, embedded: list[int]
) -> None:
    csv, whole = interrupted
    journal = tmp_path / "out/results.csv.partial/0-of-1/journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"rows": 8, "fai')
    embedded.clear()
    run(csv)
    assert read_files(tmp_path / "out") == whole


@pytest.mark.parametrize("change", ["table", "queries", "batch_size", "model", "precision"])
def test_what_another_run_left_is_not_taken(
    run: Run,
    predictor: Predictor,
    grey_image: Callable[[int], Path],
    embedded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    csv = "img_path\n" + "\n".join(grey_image(value).name for value in range(0, 200, 20)) + "\n"
    embedded[:] = [0]
    with pytest.raises(UserError, match="out of memory"):
        run(csv)
    embedded.clear()
    if change == "model":
        monkeypatch.setattr(Predictor, "digest", "another")
    if change == "precision":
        predictor.checkpoint.vision_dtype = torch.float16
    queries = ["at 7"] if change == "queries" else QUERIES
    run(csv + "0.png\n" * (change == "table"), queries, 4 if change == "batch_size" else 2)
    assert sum(embedded) == 10 + (change == "table")


def test_processes_share_the_rows_and_the_first_one_joins_them(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f'{grey_image(value).name},"a\nb"' for value in range(0, 250, 20)]
    csv = "img_path,note\n" + "\n".join(rows) + "\ngone.png,\n"
    alone = run(csv).metrics()
    whole = read_files(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "3")
    computed = []
    for rank in (2, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        summary = run(csv)
        computed.append(summary.computed)
    assert computed == [6, 4, 4]
    assert summary.metrics() == alone
    assert read_files(tmp_path / "out") == whole


def test_more_processes_than_batches_do_no_harm(
    run: Run, grey_image: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 1, 0):
        monkeypatch.setenv("RANK", str(rank))
        summary = run(f"img_path\n{grey_image(0).name}\n")
    assert summary.metrics()["rows"] == 1


def test_parquet_results_hold_the_same_with_numbers_as_numbers(
    predictor: Predictor, run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    run(f"img_path,note\n{grey_image(200).name},=1+1\ngone.png,-5\n")
    outputs = Outputs.beside(tmp_path / "out/results.parquet")
    infer_batch(predictor, read_rows(tmp_path / "in.csv"), QUERIES, outputs, 2)
    table, csv = pd.read_parquet(outputs.results), pd.read_csv(tmp_path / "out/results.csv")
    assert table.columns.tolist() == csv.columns.tolist()
    assert table["similarity: at 0"].dtype == np.float64
    assert table["kl_probability"].tolist()[0] == csv["kl_probability"].tolist()[0]
    assert table["similarity: at 0"].isna().tolist() == [False, True]
    assert table["note"].tolist() == ["=1+1", "-5"]


def test_cells_that_a_spreadsheet_would_run_are_guarded_and_numbers_stay(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    run(f"img_path,note\n{grey_image(200).name},=1+1\n@gone.png,-5\n-x.png,+1e3\n")
    results = pd.read_csv(tmp_path / "out/results.csv", dtype=str)
    assert results["note"].tolist() == ["'=1+1", "-5", "+1e3"]
    assert results["img_path"].tolist()[1:] == ["'@gone.png", "'-x.png"]
    assert pd.read_csv(tmp_path / "out/embedding_ids.csv")["img_path"].tolist()[1:] == ["'@gone.png", "'-x.png"]


def test_a_model_that_gives_no_numbers_gives_no_results(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_module, "embed_pixels", lambda *_: np.full((1, 2), np.nan, dtype=np.float32))
    with pytest.raises(UserError, match=r"fake\.pt gives embeddings that are no numbers"):
        run(f"img_path\n{grey_image(0).name}\n")
    assert not (tmp_path / "out/results.csv").exists()


def test_nothing_partial_is_left_after_a_finished_run(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0)
    run("img_path\n0.png\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "embedding_ids.csv",
        "embeddings.npy",
        "results.csv",
        "studies.csv",
    ]


def test_an_unfinished_copy_that_cannot_be_removed_is_told(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would pass for an interrupted run, which may replace the results."""

    def refuse(folder: Path) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), folder)

    monkeypatch.setattr(outputs_module.shutil, "rmtree", refuse)
    grey_image(0)
    said = r"results\.csv is complete, but .*results\.csv\.partial cannot be removed \(Disk quota exceeded\): remove it"
    with pytest.raises(UserError, match=said):
        run("img_path\n0.png\n")
    assert (tmp_path / "out/results.csv").exists()


def test_results_of_an_earlier_run_can_be_the_input(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    grey_image(0)
    run("img_path\n0.png\n")
    run((tmp_path / "out/results.csv").read_text())
    columns = pd.read_csv(tmp_path / "out/results.csv").columns
    assert columns.is_unique
    assert {"input_status", "status", "input_best_query"} <= set(columns)


def test_only_a_few_batches_are_ahead_of_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    monkeypatch.setattr(batch_module, "available_cores", lambda: 2)
    scorer: Any = SimpleNamespace(
        predictor=SimpleNamespace(transform=SimpleNamespace(image_size=4)),
        score=lambda rows, pixels, images: scored.append(len(images)),
    )
    batches = scored_batches(scorer, iter([([""], None)] * 1000), batch_size=10)
    next(batches)
    assert sum(scored) <= 10 * (2 + batch_module.BATCHES_AHEAD)
    assert len(list(batches)) == 99
    assert sum(scored) == 1000


def test_results_are_the_same_whether_read_here_or_in_processes(
    run: Run, grey_image: Callable[[int], Path], tmp_path: Path
) -> None:
    table = "img_path\n" + "".join(f"{grey_image(60 * number).name}\n" for number in range(5)) + "gone.png\n"
    written = []
    for batch_size in (6, 2):
        run(table, batch_size=batch_size)
        written.append([(tmp_path / "out" / name).read_bytes() for name in outputs_module.NAMES])
    assert written[0] == written[1]


def test_output_names_follow_the_results_file() -> None:
    assert Outputs.beside(Path("a/results.csv")).embeddings == Path("a/embeddings.npy")
    other = Outputs.beside(Path("a/site2.csv"))
    assert (other.embeddings, other.ids) == (Path("a/site2_embeddings.npy"), Path("a/site2_embedding_ids.csv"))


def test_second_run_with_the_same_outputs_is_refused(tmp_path: Path) -> None:
    outputs = Outputs.beside(tmp_path / "results.csv")
    with (
        open_part(outputs, Part(1, 0, 1), "key", ["img_path"], 2),
        pytest.raises(UserError, match=r"another process is writing .*results\.csv"),
        open_part(outputs, Part(1, 0, 1), "key", ["img_path"], 2),
    ):
        pass


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
