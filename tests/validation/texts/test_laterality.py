import pandas as pd
import pytest

from knee_siglip.validation.texts.laterality import check_side, side_in_text, side_patterns
from toys import KNEE


def table(*rows: tuple[str, str]) -> pd.DataFrame:
    """(side, impression) pairs, numbered from 2."""
    made = pd.DataFrame(rows, columns=["side", "impression"], dtype=str)
    return made.assign(img_path=[f"{n}.png" for n in range(len(made))]).set_index(pd.RangeIndex(2, len(made) + 2))


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Severe OA of medial compartment of right knee joint with varus.", "right"),
        ("LEFT KNEE: no fracture.", "left"),
        ("Knee, right: normal", "right"),
        ("Rt. knee OA", "right"),
        ("R knee normal", "right"),
        ("Osteoarthritis, left.", "left"),
        ("Left total knee replacement", "left"),
        ("Right lateral meniscus calcified.", "right"),
        ("Right-handed patient. Left knee: OA", "left"),
        ("Right knee: osteophytes; patella left unremarkable.", "right"),
        ("Normal.", None),
        ("Severe OA of both knees.", None),
        ("Right knee worse than left.", None),
        ("Left: normal. Right: normal.", None),
        ("Compared with the left knee, more narrowing.", None),
        ("More narrowing than in the right knee.", None),
        ("Hardware left in place.", None),
        ("The drain was left in the knee.", None),
        ("Normal right hip.", None),
        ("Contralateral right knee normal.", None),
    ],
)
def test_side_is_what_the_text_says_of_the_knee(text, side):
    assert side_in_text(text, side_patterns(KNEE.subject, KNEE.side_words)) == side


@pytest.mark.parametrize("side", ["left", "L", " Left ", "lt", "both", "bilateral", ""])
def test_agreeing_open_and_empty_sides_are_no_issues(side):
    assert check_side(table((side, "Normal left knee.")), KNEE) == []


@pytest.mark.parametrize("side", ["right", "R", " RIGHT "])
def test_other_side_names_both(side):
    (issue,) = check_side(table(("left", "Normal left knee."), (side, "Normal left knee.")), KNEE)
    assert (issue.severity, issue.check, issue.row) == ("warning", "side_contradiction", 3)
    assert "side is 'right', but the impression names only the left knee" in issue.message


def test_unknown_values_are_told_once():
    (issue,) = check_side(table(("rechts", "Normal left knee."), ("rechts", "x"), ("links", "x")), KNEE)
    assert (issue.check, issue.row) == ("unknown_side", None)
    assert "'rechts', 'links' in 3 rows, the first 2" in issue.message


def test_no_column_no_issue():
    assert check_side(table(("left", "Right knee.")).drop(columns="side"), KNEE) == []
