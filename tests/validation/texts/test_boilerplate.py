import pandas as pd
import pytest

from knee_siglip.tables.text import normalise_text
from knee_siglip.validation.texts.boilerplate import check_boilerplate, check_missing
from toys import KNEE


def table(*texts: str) -> pd.DataFrame:
    paths = [f"{n}.png" for n in range(len(texts))]
    normalised = [normalise_text(text) for text in texts]
    index = range(2, len(texts) + 2)
    return pd.DataFrame({"img_path": paths, "impression": texts, "text": normalised}, index=index)


@pytest.mark.parametrize("text", ["", "  ", "-", "...", "?!", "\u200b", "12", "3 4"])
def test_text_without_words_is_an_error(text):
    (issue,) = check_missing(table("Normal.", text))
    assert (issue.severity, issue.check, issue.row) == ("error", "empty_text", 3)


@pytest.mark.parametrize(
    "text", ["nan", "NaN", "None", "N/A", "NA", "null", "#N/A", "#REF!", "#VALUE!", "not available."]
)
def test_mark_of_a_missing_text_is_an_error(text):
    (issue,) = check_missing(table("Normal.", text))
    assert (issue.severity, issue.check, issue.row) == ("error", "missing_text", 3)
    assert text in issue.message


def test_all_errors_are_listed_and_long_cells_are_cut():
    issues = check_missing(table(*["-" * 10_000] * 50))
    assert len(issues) == 50
    assert max(len(issue.message) for issue in issues) < 100


@pytest.mark.parametrize(
    "text",
    [
        "Electronically signed by Jane Doe",
        "Clinical correlation recommended.",
        "Clinical correlation is advised if symptoms persist.",
        "Comparison: none.",
        "No prior studies for comparison. End of report.",
        "X-ray of the left knee AP and lateral.",
        "Two views of the right knee. Dictated by JD.",
        "Please correlate clinically.",
    ],
)
def test_boilerplate_is_warned_of_and_not_quoted(text):
    (issue,) = check_boilerplate(table("Normal.", text), KNEE)
    assert (issue.severity, issue.check, issue.row) == ("warning", "boilerplate_text", 3)
    assert "Doe" not in issue.message


@pytest.mark.parametrize("text", ["See report.", "As above", "dictated", "Please see the full report", "UNCHANGED"])
def test_text_that_sends_elsewhere_is_warned_of(text):
    (issue,) = check_boilerplate(table(text), KNEE)[-1:]
    assert issue.severity == "warning"


@pytest.mark.parametrize(
    "text",
    [
        "Normal.",
        "No fracture. Clinical correlation recommended.",
        "Comparison: none. Mild OA.",
        "Two views of the right knee show effusion.",
        "Findings consistent with mild OA.",
        "Follow-up after fixation: unchanged position.",
        "None of the compartments is narrowed.",
    ],
)
def test_text_that_says_something_is_kept(text):
    assert check_missing(table(text)) == check_boilerplate(table(text), KNEE) == []
