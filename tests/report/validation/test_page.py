"""The page stands alone, escapes what the data says, keeps its caps, and shows both sides of a leak."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.report.validation import pictured_issues as pictured_issues
from knee_siglip.report.validation.glossary import GLOSSARY
from knee_siglip.report.validation.page import write_page, write_validation_page
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.outputs import read_issues, write_results
from knee_siglip.validation.validate import NOTHING_READ
from pages import Page, assert_shows_well, assert_stands_alone
from toys import KNEE

CSV = Path("data/train.csv")
SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
METRICS: dict[str, Any] = {
    "errors": 0,
    "warnings": 0,
    "dropped": 0,
    "rows": 12,
    "patients": 12,
    "images": 12,
    "distinct_texts": 3,
    "splits": {
        split: {"rows": 6, "sides": {"left": 3, "right": 3}, "width": {"median": 20.0}} for split in ("train", "val")
    },
    "texts": {"truncated_share": 0.25},
    "shift": {"test": {"mean": {"ks": 0.4, "ks_p": 0.001}, "side": {"cramers_v": 0.05, "cramers_v_p": 1.0}}},
    "shortcuts": {"kl_grade": {"depth": {"auroc": 0.8, "highest": 0.97, "highest_low": 0.91}}},
}


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> pd.DataFrame:
    """Twelve rows (spreadsheet rows 2-13), each with an image of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    names = [f"images/P{number:02d}.png" for number in range(12)]
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (20, 20)).astype(np.uint8)).save(tmp_path / "data" / name)
    return pd.DataFrame(
        {
            "csv_row": range(2, 14),
            "img_path": names,
            "impression": [f"Mild OA, film {number}." for number in range(12)],
            "split": SPLITS,
            "patient_id": [f"Q{number}" for number in range(12)],
            "side": ["left", "right"] * 6,
            "kl_grade": pd.array([0, 1, 2, 3, 4, None] * 2, dtype="Int64"),
            "image_file": [f"data/{name}" for name in names],
            "image_id": [f"{number:064d}" for number in range(12)],
            "width": 20,
            "height": 20,
            "text": ["mild oa", "normal knee", "mild oa"] * 4,
            "mean": np.linspace(100, 130, 12),
            "std": 50.0,
            "file_bytes": range(1000, 1012),
        },
        index=pd.RangeIndex(2, 14),
    )


def page_of(
    table: pd.DataFrame, issues: Sequence[Issue] = (), metrics: dict[str, Any] | None = None, csv: Path = CSV
) -> Page:
    path = Path("reports/validation/index.html")
    write_page(path, csv, table, issues, METRICS if metrics is None else metrics, KNEE)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_outside_itself(table: pd.DataFrame) -> None:
    page = page_of(table, [Issue("error", "patient_leak", 2, "images/P00.png", "in two", (12,))])
    assert_stands_alone(page, files_beside=frozenset({"issues.csv"}))


def test_a_browser_shows_and_prints_it(browser, table: pd.DataFrame) -> None:
    page_of(table, [Issue("error", "patient_leak", 2, "images/P00.png", "in two", (12,))])
    assert_shows_well(browser, Path("reports/validation/index.html"))


def test_what_validation_leaves_on_disk_gives_the_same_page(table: pd.DataFrame) -> None:
    issues = [
        Issue("error", "patient_leak", 2, "images/P00.png", "in two", (12, 13)),
        Issue("error", "missing_image", 3, "=1+1.png", f"=1+1.png does not exist {'m' * 200_000}"),
        Issue("warning", "tokens_not_checked", None, "", "line\rbreak, 'quoted'"),
        Issue("warning", "flat_image", 4, "'P02.png", "flat"),
    ]
    folder = Path("reports/validation")
    counted = {"errors", "warnings", "dropped"}
    write_results(
        folder, table, issues, {name: value for name, value in METRICS.items() if name not in counted}, "kl_grade"
    )
    assert read_issues(folder) == issues
    metrics = METRICS | {"errors": 2, "warnings": 2}
    page = write_validation_page(folder, CSV, KNEE)
    assert page == folder / "index.html"
    (folder / "issues.csv").write_text("severity,check,row\nerror,patient_leak")
    with pytest.raises(UserError, match=r"issues\.csv is damaged"):
        read_issues(folder)
    drawn = page.read_text(encoding="utf-8")
    assert drawn == page_of(table, issues, metrics).html


def test_without_a_validation_there_is_no_page(tmp_path: Path) -> None:
    assert write_validation_page(tmp_path, CSV, KNEE) is None


def test_both_sides_of_a_leak_stand_beside_each_other(table: pd.DataFrame) -> None:
    page = page_of(table, [Issue("error", "patient_leak", 3, "images/P01.png", "patient Q1 is in two splits", (12,))])
    pair = page.html[page.html.index('class="pair"') :].split("</li>")[0]
    assert pair.count("<img ") == 2
    shown = Page(pair[len('class="pair">') :]).text
    for words in (
        "train, row 3, patient Q1",
        "test, row 12, patient Q10",
        "P01.png",
        "P10.png",
        "KL grade 1",
        "KL grade 4",
    ):
        assert words in shown


def test_a_dropped_row_is_shown_though_the_table_has_lost_it(table: pd.DataFrame) -> None:
    page = page_of(table.drop(index=3), [Issue("dropped", "patient_leak", 3, "images/P01.png", "dropped", (12,))])
    assert "row 3, dropped" in page.text
    assert page.html[page.html.index('class="pair"') :].split("</li>")[0].count("<img ") == 2


def test_another_side_that_was_dropped_as_well_says_so(table: pd.DataFrame) -> None:
    page = page_of(table, [Issue("dropped", "image_leak", 3, "images/P01.png", "dropped", (99,))])
    assert "This row was also dropped." in page.text


def test_an_unreadable_image_has_a_placeholder_with_the_reason(table: pd.DataFrame) -> None:
    Path("data/images/P01.png").unlink()
    table.loc[4, "image_id"] = ""
    issues = [Issue("warning", "flat_image", row, f"images/P0{row - 2}.png", "flat") for row in (3, 4)]
    page = page_of(table, issues)
    assert len(page.of("div", "none")) >= 2
    assert "no such file" in page.text
    assert "This image cannot be read." in page.text


HOSTILE = '<script>alert("x")</script>\'"><img src=x onerror=y>'


def test_nothing_in_the_data_becomes_markup(table: pd.DataFrame) -> None:
    for column in ("impression", "patient_id", "side", "img_path", "text"):
        table[column] = HOSTILE
    issues = [
        Issue("error", HOSTILE, 2, HOSTILE, HOSTILE),
        Issue("error", "image_leak", 2, HOSTILE, HOSTILE, (12,)),
        Issue("dropped", "image_leak", 99, HOSTILE, HOSTILE),
    ]
    metrics = {
        **METRICS,
        "splits": {"train": {HOSTILE: {HOSTILE: 1}}},
        "shift": {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}},
    }
    page = page_of(table, issues, metrics, Path(HOSTILE))
    assert page.of("script") == []
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert HOSTILE in page.text


def test_huge_texts_are_clipped_and_control_characters_do_no_harm(table: pd.DataFrame) -> None:
    table["impression"] = table["text"] = "word " * 100_000
    page = page_of(table, [Issue("error", "empty_text", 2, "f" * 10_000, "m" * 1_000_000 + "\x00\x1b\u202e")])
    assert len(page.html) < 500_000


def test_findings_and_pictures_are_capped_and_the_rest_is_counted(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictured_issues, "PICTURES_SHOWN", 9)
    checks = ("flat_image", "inverted_image", "repeated_image")
    issues = [Issue("warning", check, 2 + n % 12, "images/a.png", f"no. {n}") for check in checks for n in range(70)]
    issues += [Issue("error", "bad_label", 2, "images/a.png", f"grade {n}") for n in range(70)]
    page = page_of(table, issues)
    assert page.text.count("The first 50 of 70; the other 20 are in issues.csv.") == 4
    pictured = page.html[: page.html.index('id="examples"')]
    assert pictured.count("<img ") == 9
    assert page.text.count("67 more without pictures.") == 3
    assert "grade 49" in page.text
    assert "grade 50" not in page.text


def test_a_leak_is_never_cut_in_two_by_the_cap(table: pd.DataFrame) -> None:
    issues = [Issue("error", "near_duplicate_leak", row, "images/a.png", "same", (11, 12, 13)) for row in range(2, 8)]
    page = page_of(table, issues)
    pairs = [part.split("</li>")[0].count("<img ") for part in page.html.split('class="pair"')[1:]]
    assert pairs == [4, 4, 4]


def test_errors_come_first_then_dropped_rows_then_warnings(table: pd.DataFrame) -> None:
    order = ("warning", "dropped", "error")
    page = page_of(table, [Issue(severity, f"{severity}_check", 2, "a.png", "m") for severity in order])
    places = [page.text.index(f"{severity}_check") for severity in ("error", "dropped", "warning")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("severities", "headline"),
    [
        ([], "No errors, no warnings: 12 images of 12 patients are ready."),
        (["warning"], "No errors, 1 warning: 12 images of 12 patients are ready."),
        (
            ["warning", "dropped", "dropped"],
            "No errors, 1 warning and 2 dropped rows: 12 images of 12 patients are ready.",
        ),
        (["warning", "error", "error"], "2 errors: nothing was trained."),
    ],
)
def test_the_verdict_is_the_first_sentence(table: pd.DataFrame, severities: list[Any], headline: str) -> None:
    page = page_of(table, [Issue(severity, "flat_image", 2, "a.png", "m") for severity in severities])
    assert page.text.index(headline) < 200


def test_a_known_check_is_explained_and_an_unknown_one_named(table: pd.DataFrame) -> None:
    page = page_of(table, [Issue("error", "patient_leak", None, "", "m"), Issue("error", "moon_phase", None, "", "m")])
    assert GLOSSARY["patient_leak"].meaning in page.text
    assert "Moon phase" in page.text


def test_what_was_looked_for_in_vain_is_listed(table: pd.DataFrame) -> None:
    silent = page_of(table, [Issue("warning", "tokens_not_checked", None, "", "m")]).text.split("Checks without")[-1]
    assert "Patient in two splits" in silent
    assert "Truncated texts" not in silent


def test_the_figures_of_metrics_json_are_there(table: pd.DataFrame) -> None:
    page = page_of(table)
    for words in ("3 (50 %)", "width: median", "truncated share", "25 %", "Kolmogorov-Smirnov", "best class"):
        assert words in page.text
    assert len(page.of("rect", "over")) == 2
    assert len(page.of("rect", "level")) == 1


def test_frequent_texts_are_counted_by_split(table: pd.DataFrame) -> None:
    rows = page_of(table).html.split("The most frequent texts")[1].split("<tr>")
    assert [Page(row.split("</tr>")[0]).text for row in rows[2:4]] == ["mild oa 4 2 67 %", "normal knee 2 1 33 %"]


def test_every_split_shows_examples_of_readable_images(table: pd.DataFrame) -> None:
    table.loc[[11, 12], "image_id"] = ""
    examples = page_of(table).html.split('id="examples"')[1].split("</section>")[0]
    assert [part.count("<figure>") for part in examples.split("<h3>")[1:]] == [6, 3, 1]


def test_pictures_have_alternative_texts_and_charts_labels(table: pd.DataFrame) -> None:
    page = page_of(table)
    assert all(image["alt"] for image in page.of("img"))
    assert all(chart["aria-label"] for chart in page.of("svg", "chart"))
    assert page.of("html") == [{"lang": "en"}]


def test_the_same_content_gives_the_same_bytes_and_no_absolute_path(table: pd.DataFrame, tmp_path: Path) -> None:
    table["split"] = "train"  # more images and texts than are drawn as examples
    table["text"] = table["impression"].str.lower()
    issues = [Issue("error", "patient_leak", 3, "images/P01.png", "in two", (12,))]
    first = page_of(table, issues).html
    assert page_of(table.copy(), list(issues)).html == first
    assert str(tmp_path) not in first


def test_a_csv_that_could_not_be_read_gives_a_short_page(table: pd.DataFrame) -> None:
    page = page_of(
        NOTHING_READ, [Issue("error", "unreadable_csv", 7, "data/train.csv", "line 7: 9 cells")], {"rows": 0}
    )
    assert "No row could be checked." in page.text
    assert "line 7: 9 cells" in page.text
    assert page.of("img") == []
    assert "Checks without issues" not in page.text


@pytest.mark.parametrize("missing", ["kl_grade", "side"])
def test_a_missing_column_leaves_its_part_out(table: pd.DataFrame, missing: str) -> None:
    issues = [Issue("error", "image_leak", 2, "images/P00.png", "m", (12,))]
    assert "1 error" in page_of(table.drop(columns=missing), issues, {}).text


def test_values_that_are_no_numbers_are_dashes(table: pd.DataFrame) -> None:
    table["mean"] = np.nan
    metrics = {
        "splits": {"train": {"rows": None, "width": {"median": float("nan")}}},
        "shift": {"val": {"mean": {"ks": 0.1}}},
    }
    page = page_of(table, [], metrics)
    assert "nan" not in page.text.lower()
