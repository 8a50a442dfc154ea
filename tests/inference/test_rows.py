"""Reading the rows of a batch."""

import os
from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.inference.rows import carried_names, read_folder, read_rows
from knee_siglip.tables.manifest import MADE_COLUMNS


def test_cells_come_out_as_they_stand_in_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,img_path,note\n007,a.png,NA\n1.50,b.png,"x, ""y"""\n', encoding="utf-8-sig")
    table = read_rows(path)
    assert [cells for cells, _ in table] == [["a.png", "007", "NA"], ["b.png", "1.50", 'x, "y"']]
    assert table.columns == ["img_path", "id", "note"]


def test_relative_paths_are_relative_to_the_csv_and_absolute_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("img_path\nsub/a.png\n/elsewhere/b.png\n\n")
    assert [file for _, file in read_rows(path)] == [tmp_path / "sub/a.png", Path("/elsewhere/b.png")]


def test_another_separator_is_read_as_validation_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("site;img_path\nx;a.png\n")
    table = read_rows(path)
    assert table.columns == ["img_path", "site"]
    assert [cells for cells, _ in table] == [["a.png", "x"]]


def test_row_without_a_path_has_no_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("img_path,note\n,x\n")
    assert [file for _, file in read_rows(path)] == [None]


def test_manifest_gives_the_rows_of_the_split_by_their_image_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    rows = pd.DataFrame(
        {
            "img_path": ["a.png", "b.png", "c.png"],
            "split": ["train", "test", "test"],
            "kl_grade": pd.array([1, 2, None], "Int64"),
        }
    )
    for name in MADE_COLUMNS:
        rows[name] = ["data/a.png", "data/b.png", "data/c.png"] if name == "image_file" else ["", "", ""]
    rows.to_parquet(path)
    table = read_rows(path, split="test")
    assert [file for _, file in table] == [Path("data/b.png"), Path("data/c.png")]
    assert [cells[table.columns.index("kl_grade")] for cells, _ in table] == ["2", ""]
    assert len(read_rows(path)) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "is empty"), ("a,b\n1,2\n", "no column img_path"), ("img_path\n", "no rows"), ("img_path\n\xff\n", "UTF-8")],
)
def test_unusable_csv_is_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        read_rows(path)


def test_any_parquet_file_with_paths_is_read(tmp_path: Path) -> None:
    pd.DataFrame({"site": [1.0, None], "img_path": ["a.png", "b.png"]}).to_parquet(tmp_path / "in.parquet")
    table = read_rows(tmp_path / "in.parquet")
    assert list(table) == [(["a.png", "1"], tmp_path / "a.png"), (["b.png", ""], tmp_path / "b.png")]
    (tmp_path / "in.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"in\.parquet is no Parquet file"):
        read_rows(tmp_path / "in.parquet")


def test_folder_gives_every_file_below_it_in_order_whatever_its_name(tmp_path: Path) -> None:
    for name in ("b/IM0001", "a.dcm", "b/.hidden", ".git/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    table = read_folder(tmp_path)
    assert [cells for cells, _ in table] == [["a.dcm"], [r"caf\xe9.png"], ["b/IM0001"]]
    assert all(file is not None and file.is_file() for _, file in table)
    for wrong in (tmp_path / "gone", tmp_path / ".git" / "c.png"):
        with pytest.raises(UsageError, match="no folder"):
            read_folder(wrong)


def test_digest_changes_with_the_table(tmp_path: Path) -> None:
    digests = []
    for row in ("a.png", "b.png"):
        (tmp_path / "in.csv").write_text(f"img_path\n{row}\n")
        digests.append(read_rows(tmp_path / "in.csv").digest)
    assert digests[0] != digests[1]


def test_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.csv does not exist"):
        read_rows(tmp_path / "gone.csv")


def test_carried_column_that_clashes_is_renamed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert carried_names(["status", "site", "input_status"], ["img_path", "status"]) == [
        "input_input_status",
        "site",
        "input_status",
    ]
    assert "status" in caplog.text
