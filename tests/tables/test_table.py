import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from knee_siglip.tables.table import TableError, read_table


@pytest.fixture
def write(tmp_path: Path):
    def write_csv(content: str | bytes) -> Path:
        path = tmp_path / "train.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_csv


def test_cells_stay_what_they_are(write):
    table = read_table(write('img_path,note\n007,NA\n1e5,None\n" x ",\nnan,"a, ""b"""\n'))
    assert table["img_path"].tolist() == ["007", "1e5", " x ", "nan"]
    assert table["note"].tolist() == ["NA", "None", "", 'a, "b"']


def test_rows_are_numbered_as_in_a_spreadsheet(write):
    table = read_table(write('a,b\n1,2\n\n3,"two\nlines"\n5,6\n\n\n'))
    assert table.index.tolist() == [2, 4, 5]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfa,b\n1,2\n", b"a,b\r\n1,2\r\n", b"a,b\r1,2\r", b"a,b\n1,2"])
def test_bom_and_line_ends_of_other_systems(write, content):
    table = read_table(write(content))
    assert list(table.columns) == ["a", "b"]
    assert table.loc[2].tolist() == ["1", "2"]


def test_header_alone_is_a_table_without_rows(write):
    table = read_table(write("a,b\n"))
    assert list(table.columns) == ["a", "b"]
    assert table.empty


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        ("", None, "is empty"),
        (" \n\n", None, "is empty"),
        ("\na,b\n", 1, "first row is blank"),
        ("a,b,a\n", 1, "'a' stands twice"),
        ("a,b\n1,2\n1,2,3\n1\n", 3, r"header has 2 cells, row 3 has 3, row 4 has 1"),
        ('a,b\n1,2\n1,"open\n', 3, "row 3 is no valid CSV"),
        ("a,b\n1,Gonarthrose beidseits, schwer \xe4\n".encode("latin-1"), None, "line 2 is not UTF-8"),
        ("a,b\n".encode("utf-16"), None, "is UTF-16; save"),
        ("a,b\n".encode("utf-32"), None, "is UTF-32; save"),
        ("a,b\n1,2\n".encode("utf-16-le"), 1, "row 1 holds a NUL"),
        ("a,b\n1,2\n1,x\0y\n", 3, "row 3 holds a NUL"),
    ],
)
def test_broken_tables_name_file_and_row(write, content, row, reason):
    path = write(content)
    with pytest.raises(TableError, match=reason) as caught:
        read_table(path)
    assert str(path) in str(caught.value)
    assert caught.value.row == row


def test_a_pipe_and_a_device_that_never_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (tmp_path / "pipe.csv", Path("/dev/zero")):
        with pytest.raises(TableError, match="is a pipe or a device; name a file"):
            read_table(path)


def test_missing_csv_names_the_parameter(tmp_path):
    with pytest.raises(TableError, match=r"no\.csv does not exist; give"):
        read_table(tmp_path / "no.csv")


@pytest.mark.parametrize(
    "content",
    [
        'a;b\n1;"x; y"\n',
        "a\tb\n1\tx; y\n",
        "a|b\n1|x; y\n",
        'sep=;\na;b\n1;"x; y"\n',
        '"sep=,"\r\na,b\r\n1,x; y\r\n',
        gzip.compress(b"a,b\n1,x; y\n", mtime=0),
    ],
)
def test_other_separators_and_compression_are_read(write, content):
    table = read_table(write(content))
    assert table.to_dict("list") == {"a": ["1"], "b": ["x; y"]}
    assert table.index.tolist() == [2]


def test_one_column_needs_no_separator(write):
    assert read_table(write("img_path\na;b.png\n")).to_dict("list") == {"img_path": ["a;b.png"]}


def test_a_cell_of_a_whole_report_is_read(write):
    report = "No fracture. " * 20_000
    assert read_table(write(f'a,b\n1,"{report}"\n')).loc[2, "b"] == report


def test_parquet_shows_what_a_csv_of_it_would(tmp_path):
    path = tmp_path / "train.parquet"
    values = {"id": [9000099.0, None], "grade": [2, 3], "text": ["a", None], "share": [0.5, 1.25], "ok": [True, False]}
    pd.DataFrame(values, index=[7, 9]).to_parquet(path)
    table = read_table(path)
    assert table.to_dict("list") == {
        "id": ["9000099", ""],
        "grade": ["2", "3"],
        "text": ["a", ""],
        "share": ["0.5", "1.25"],
        "ok": ["True", "False"],
    }
    assert table.index.tolist() == [2, 3]
    assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04rest", "is an Excel workbook; save its sheet as CSV UTF-8"),
        (b"\xd0\xcf\x11\xe0rest", "is an Excel workbook"),
        (gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-20], "is damaged: it cannot be decompressed"),
        (b"\x1f\x8bno gzip", "is damaged: it cannot be decompressed"),
        (b"PAR1nothing", "is no readable Parquet file"),
    ],
)
def test_other_formats_and_damaged_files_are_named(write, content, reason):
    path = write(content)
    with pytest.raises(TableError, match=reason) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


def test_a_folder_is_told_from_a_file(tmp_path):
    with pytest.raises(TableError, match="is a folder; name a CSV file, it holds none"):
        read_table(tmp_path)
    (tmp_path / "train.csv").write_text("a\n")
    with pytest.raises(TableError, match=r"is a folder; name a CSV file, such as train\.csv in it"):
        read_table(tmp_path)


def test_what_decompresses_without_end_is_no_table(write, monkeypatch):
    monkeypatch.setattr("knee_siglip.tables.table.LARGEST_TEXT", 1000)
    with pytest.raises(TableError, match="which is no table"):
        read_table(write(gzip.compress(b"a,b\n" * 1000)))
