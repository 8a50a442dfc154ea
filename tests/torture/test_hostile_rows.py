"""Bad, odd and hostile CSVs: each is either read right or refused in one sentence that names file and row."""

import csv
import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.params.files import parse_params
from knee_siglip.validation.validate import validate

HEADER = ["img_path", "impression", "split", "patient_id", "kl_grade"]
TEXTS = [
    "Normal knee joint.",
    "Doubtful OA of the knee.",
    "Mild OA of the knee.",
    "Moderate OA of the knee.",
    "Severe OA of the knee.",
    "No abnormality of the knee joint.",
]
SPLITS = ["train", "train", "val", "val", "test", "test"]
GRADES = ["0", "1", "2", "3", "4", "0"]
CSV = Path("data/train.csv")
LONGEST_SENTENCE = 1000


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of noise, drawn once."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (32, 24)).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def rows(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> list[list[str]]:
    """Spreadsheet rows 2-7 of a project that validates."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(images)
    return [
        [f"images/{number}.png", TEXTS[number], SPLITS[number], f"P{number}", GRADES[number]] for number in range(6)
    ]


def as_csv(rows: list[list[str]], header: list[str] | None = None, **dialect: str) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **{"lineterminator": "\n", **dialect}).writerows([header or HEADER, *rows])
    return buffer.getvalue().encode()


def run(content: bytes) -> tuple[pd.DataFrame | None, list[dict[str, str]], str]:
    """Manifest, issues and the error's sentence. Anything but a UserError fails the test with its traceback."""
    CSV.write_bytes(content)
    manifest, error = None, ""
    try:
        manifest = validate(parse_params({"data": {"csv": str(CSV), "images": "data/images"}}))
    except UserError as failure:
        error = str(failure)
    with Path("reports/validation/issues.csv").open(newline="", encoding="utf-8") as file:
        return manifest, list(csv.DictReader(file)), error


def cell(row: int, column: str, value: str) -> Callable[[list[list[str]]], bytes]:
    def content(rows: list[list[str]]) -> bytes:
        rows[row - 2][HEADER.index(column)] = value
        return as_csv(rows)

    return content


READ_RIGHT: dict[str, Callable[[list[list[str]]], bytes]] = {
    "semicolons": lambda rows: as_csv(rows, delimiter=";"),
    "tabs": lambda rows: as_csv(rows, delimiter="\t"),
    "bars": lambda rows: as_csv(rows, delimiter="|"),
    "Excel's line sep=;": lambda rows: b"sep=;\n" + as_csv(rows, delimiter=";"),
    "gzip": lambda rows: gzip.compress(as_csv(rows)),
    "byte order mark": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "CRLF": lambda rows: as_csv(rows, lineterminator="\r\n"),
    "CR only": lambda rows: as_csv(rows, lineterminator="\r"),
    "no last line end": lambda rows: as_csv(rows).rstrip(b"\n"),
    "every cell in quotes": lambda rows: (
        as_csv(rows).replace(b"\n", b'"\n"').replace(b",", b'","').join([b'"', b""])[:-1]
    ),
    "blank lines": lambda rows: as_csv(rows).replace(b"\n", b"\n\n"),
    "columns in another order": lambda rows: as_csv([row[::-1] for row in rows], HEADER[::-1]),
}
"""The file's shape, which must leave no trace in the manifest."""


@pytest.mark.parametrize("kind", READ_RIGHT)
def test_shape_of_the_file_leaves_no_trace(rows, kind):
    manifest, issues, error = run(READ_RIGHT[kind](rows))
    assert error == ""
    assert not [issue for issue in issues if issue["severity"] == "error"]
    assert manifest is not None
    assert manifest[HEADER[:4]].to_numpy().tolist() == [row[:4] for row in rows]


KEPT = {
    "quotes doubled": 'Severe "end-stage" OA of the knee.',
    "comma": "Moderate OA, with effusion, of the knee.",
    "line end in the cell": "Moderate OA\nof the knee.",
    "emoji": "Moderate OA of the knee \U0001f9b5.",
    "right to left": "תקין: moderate OA of the knee",
    "direction override": "Moderate OA of the \u202eknee\u202c.",
    "zero width": "Moderate\u200b OA of the knee.",
    "5,000 words": " ".join(["moderate osteoarthritis of the knee"] * 1000),
    "formula": "=cmd|'/c calc'!A0 moderate OA of the knee",
    "spaces round it": "  Moderate OA of the knee.  ",
    "only combining marks and letters": "Moderate OA of the kne\u0301e.",
    "full width": "Ｍｏｄｅｒａｔｅ ＯＡ of the knee",
    "markup": "<script>alert(1)</script> Moderate OA of the knee",
    "rich markup": "[red]Moderate[/red] OA of the knee [/]",
    "percent and braces": "%s {0} ${HOME} moderate OA of the knee",
    "control characters": "Moderate\x07 OA\x1b[31m of the knee",
    "looks like a number": "3.0 mm osteophyte of the knee",
}
"""Odd impressions that are texts all the same: none may be changed, and none stops the run."""


@pytest.mark.parametrize("kind", KEPT)
def test_odd_text_is_kept_as_it_is(rows, kind):
    manifest, issues, error = run(cell(5, "impression", KEPT[kind])(rows))
    assert error == ""
    assert not [issue for issue in issues if issue["severity"] == "error"]
    assert manifest is not None
    assert manifest.loc[5, "impression"] == KEPT[kind]
    assert manifest["impression"].drop(index=5).tolist() == [text for text in TEXTS if text != TEXTS[3]]
    assert manifest.loc[5, "text"].isprintable()


@dataclass(frozen=True)
class Refused:
    """What is told of a refused file: the check, the row (empty: the whole file), words of the sentence."""

    content: Callable[[list[list[str]]], bytes]
    check: str
    row: str
    words: str


REFUSED: dict[str, Refused] = {
    "empty file": Refused(lambda rows: b"", "unreadable_csv", "", "is empty"),
    "white space only": Refused(lambda rows: b" \n\t\n", "unreadable_csv", "", "is empty"),
    "byte order mark only": Refused(lambda rows: b"\xef\xbb\xbf", "unreadable_csv", "", "is empty"),
    "header only": Refused(lambda rows: as_csv([]), "missing_split", "", "no row"),
    "UTF-16": Refused(lambda rows: as_csv(rows).decode().encode("utf-16"), "unreadable_csv", "", "UTF-16"),
    "UTF-16 without mark": Refused(
        lambda rows: as_csv(rows).decode().encode("utf-16-le"), "unreadable_csv", "1", "UTF-16"
    ),
    "UTF-32": Refused(lambda rows: as_csv(rows).decode().encode("utf-32"), "unreadable_csv", "", "UTF-32"),
    "Latin-1": Refused(
        lambda rows: cell(3, "impression", "m\xe4\xdfige Arthrose")(rows).decode().encode("latin-1"),
        "unreadable_csv",
        "",
        "line 3 is not UTF-8",
    ),
    "NUL in a text": Refused(cell(4, "impression", "Mild\0 OA"), "unreadable_csv", "4", "NUL"),
    "NUL in a path": Refused(cell(4, "img_path", "images/2.png\0.txt"), "unreadable_csv", "4", "NUL"),
    "unclosed quote": Refused(
        lambda rows: as_csv(rows) + b'images/5.png,"open,test,P9,0\n', "unreadable_csv", "8", "quote"
    ),
    "text after a quote": Refused(
        lambda rows: as_csv(rows) + b'a.png,"x"y,test,P9,0\n', "unreadable_csv", "8", "quote"
    ),
    "row too long": Refused(lambda rows: as_csv([*rows, [*rows[0], "x"]]), "unreadable_csv", "8", "row 8 has 6"),
    "row too short": Refused(lambda rows: as_csv([*rows, rows[0][:3]]), "unreadable_csv", "8", "row 8 has 3"),
    "duplicate header": Refused(
        lambda rows: as_csv(rows, [*HEADER[:4], "split"]), "unreadable_csv", "1", "'split' stands twice"
    ),
    "header with a space": Refused(
        lambda rows: as_csv(rows, ["img_path ", *HEADER[1:]]), "missing_column", "1", "'img_path '"
    ),
    "header in capitals": Refused(
        lambda rows: as_csv(rows, [*map(str.upper, HEADER)]), "missing_column", "1", "IMG_PATH"
    ),
    "no header": Refused(lambda rows: as_csv(rows[1:], rows[0]), "missing_column", "1", "'img_path' is missing"),
    "a cell of 17 MB": Refused(cell(4, "impression", "a" * (2**24 + 1)), "unreadable_csv", "4", "16777216"),
    "20,000 columns": Refused(
        lambda rows: b",".join([b"c%d" % n for n in range(20_000)]) + b"\n", "missing_column", "1", "missing"
    ),
    "a PNG": Refused(lambda rows: Path("data/images/0.png").read_bytes(), "unreadable_csv", "", "UTF-8"),
}
"""Files that cannot be understood."""

REFUSED_CELLS: dict[str, tuple[str, str, str, str]] = {
    "split Train": ("split", "Train", "unknown_split", "'Train'"),
    "split with a space": ("split", "test ", "unknown_split", "'test '"),
    "split validation": ("split", "validation", "unknown_split", "'validation'"),
    "split empty": ("split", "", "unknown_split", "''"),
    "split of 100,000 letters": ("split", "x" * 100_000, "unknown_split", "allowed"),
    "grade 5": ("kl_grade", "5", "bad_label", "'5'"),
    "grade -1": ("kl_grade", "-1", "bad_label", "'-1'"),
    "grade III": ("kl_grade", "III", "bad_label", "'III'"),
    "grade nan": ("kl_grade", "nan", "bad_label", "'nan'"),
    "grade 2.5": ("kl_grade", "2.5", "bad_label", "'2.5'"),
    "grade infinite": ("kl_grade", "1e999", "bad_label", "'1e999'"),
    "path empty": ("img_path", "", "missing_image", "empty"),
    "path of spaces": ("img_path", "   ", "missing_image", "empty"),
    "path with a line end": ("img_path", "images/2.png\n", "missing_image", "2.png"),
    "path with a space": ("img_path", "images/2.png ", "missing_image", "2.png"),
    "URL": ("img_path", "https://example.org/2.png", "missing_image", "example.org"),
    "glob": ("img_path", "images/*.png", "missing_image", "*.png"),
    "home folder": ("img_path", "~/2.png", "missing_image", "2.png"),
    "variable": ("img_path", "$HOME/2.png", "missing_image", "2.png"),
    "backslashes": ("img_path", "images\\2.png", "missing_image", "2.png"),
    "folder": ("img_path", "images", "unreadable_image", "images"),
    "path outside": ("img_path", "../../../../../../../../etc/passwd", "unreadable_image", "passwd"),
    "device": ("img_path", "/dev/zero", "unreadable_image", "zero"),
    "path of 5,000 letters": ("img_path", "images/" + "x" * 5000, "unreadable_image", "too long"),
    "formula path": ("img_path", "=cmd|'/c calc'!A0", "missing_image", "calc"),
    "CSV as image": ("img_path", "train.csv", "unreadable_image", "train.csv"),
    "text empty": ("impression", "", "empty_text", "''"),
    "text of punctuation": ("impression", "-- ... !", "empty_text", "'-- ... !'"),
    "text of invisible characters": ("impression", "\u200b\u200b\ufeff", "empty_text", "no words"),
    "text nan": ("impression", "nan", "missing_text", "'nan'"),
    "text of a spreadsheet's error": ("impression", "#N/A", "missing_text", "'#N/A'"),
    "text of digits": ("impression", "12345", "empty_text", "no words"),
}
"""Column, value, check, words of the sentence: row 4 is refused, and no other."""


@pytest.mark.parametrize("kind", REFUSED)
def test_file_that_cannot_be_understood_is_one_sentence(rows, kind, capsys):
    case = REFUSED[kind]
    manifest, issues, error = run(case.content(rows))
    assert manifest is None
    assert not Path("data/validated/manifest.parquet").exists()
    issue = next(issue for issue in issues if issue["severity"] == "error")
    assert (issue["check"], issue["row"], issue["file"]) == (case.check, case.row, str(CSV))
    assert case.words in issue["message"]
    assert len(issue["message"]) < LONGEST_SENTENCE
    assert str(CSV) in error
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", REFUSED_CELLS)
def test_row_that_cannot_be_used_is_named(rows, kind, capsys):
    column, value, check, words = REFUSED_CELLS[kind]
    manifest, issues, error = run(cell(4, column, value)(rows))
    assert manifest is None
    errors = [issue for issue in issues if issue["severity"] == "error"]
    assert [(issue["check"], issue["row"]) for issue in errors] == [(check, "4")]
    assert words in errors[0]["message"] + errors[0]["file"]
    assert len(errors[0]["message"]) < LONGEST_SENTENCE
    assert str(CSV) in error
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("grade", ["3", "3.0", " 3 ", "３"])
def test_grade_in_another_way_is_the_same_grade(rows, grade):
    manifest, _, error = run(cell(4, "kl_grade", grade)(rows))
    assert error == ""
    assert manifest is not None
    assert manifest.loc[4, "kl_grade"] == 3


def test_absolute_path_is_read(rows, images):
    manifest, _, error = run(cell(4, "img_path", str(images / "2.png"))(rows))
    assert error == ""
    assert manifest is not None
    assert manifest.loc[4, "image_file"] == str(images / "2.png")


def test_path_with_detours_is_read(rows):
    manifest, _, error = run(cell(4, "img_path", "./images/../images//2.png")(rows))
    assert error == ""
    assert manifest is not None
    assert manifest.loc[4, "image_file"] == "data/images/2.png"


def test_repeated_rows_are_kept_and_named(rows):
    manifest, issues, error = run(as_csv([*rows, *rows[:2]]))
    assert error == ""
    assert manifest is not None
    assert len(manifest) == 8
    assert [issue["row"] for issue in issues if issue["check"] == "duplicate_row"] == ["8", "9"]


def test_thousands_of_bad_rows_are_all_named_but_not_all_shown(rows, capsys):
    bad = [[f"images/none{number}.png", "Mild OA.", "Train", f"Q{number}", "9"] for number in range(2000)]
    manifest, issues, _ = run(as_csv([*rows, *bad]))
    assert manifest is None
    assert sum(issue["check"] == "unknown_split" for issue in issues) == 2000
    assert len(capsys.readouterr().err.splitlines()) < 200
