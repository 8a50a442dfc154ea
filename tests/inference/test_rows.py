"""Reading the rows of a batch."""

from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.inference.rows import carried_names, read_rows
from knee_siglip.tables.manifest import MADE_COLUMNS


def test_cells_come_out_as_they_stand_in_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,img_path,note\n007,a.png,NA\n1.50,b.png,"x, ""y"""\n', encoding="utf-8-sig")
    table = read_rows(path)
    assert table.rows.to_numpy().tolist() == [["a.png", "007", "NA"], ["b.png", "1.50", 'x, "y"']]
    assert list(table.rows.columns) == ["img_path", "id", "note"]


def test_relative_paths_are_relative_to_the_csv_and_absolute_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("img_path\nsub/a.png\n/elsewhere/b.png\n\n")
    assert read_rows(path).files == [tmp_path / "sub/a.png", Path("/elsewhere/b.png")]


def test_row_without_a_path_has_no_file(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("img_path,note\n,x\n")
    assert read_rows(path).files == [None]


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
    assert table.files == [Path("data/b.png"), Path("data/c.png")]
    assert table.rows["kl_grade"].tolist() == ["2", ""]
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
