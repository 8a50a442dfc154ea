import random

import pandas as pd
import pytest

from knee_siglip.task.knee import KL_WORDINGS
from knee_siglip.validation import issue as issue_module
from knee_siglip.validation.texts.grades import check_grade
from knee_siglip.validation.texts.kellgren_lawrence import grades_in_text
from toys import KNEE


def table(*rows: tuple[object, str]) -> pd.DataFrame:
    """(kl_grade, impression) pairs, numbered from 2."""
    made = pd.DataFrame(rows, columns=["kl_grade", "impression"])
    made["kl_grade"] = made["kl_grade"].astype("Int64")
    return made.assign(img_path=[f"{n}.png" for n in range(len(made))]).set_index(pd.RangeIndex(2, len(made) + 2))


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ("KL 2-3", {2, 3}),
        ("KL-4", {4}),
        ("KL4 OA", {4}),
        ("KLG 1", {1}),
        ("Kellgren-Lawrence grade III.", {3}),
        ("Kellgren and Lawrence (KL) grade 2", {2}),
        ("Kellgren Lawrence: 2 to 3", {2, 3}),
        ("K/L grade II–III", {2, 3}),
        ("KL 2.5", {2, 3}),
        ("KL ≥ 2", {2, 3, 4}),
        ("KL grade at most 1", {0, 1}),
        ("KL > 4", None),
        ("Previously KL 2, now KL 3.", {2, 3}),
        ("KL grade 2, 3 mm osteophyte", {2}),
        ("grade 3 osteoarthritis", {3}),
        ("Stage 2 medial OA", {2}),
        ("KL grade 3 although mild OA", {3}),
        ("KL grade 12", None),
        ("Ahlbäck grade 2 osteoarthritis", None),
        ("grade 2 chondromalacia", None),
        ("no KL grade 4 changes", None),
        ("Iliac crest", None),
    ],
)
def test_numbers(text, grades):
    found = grades_in_text(text)
    assert (set(found[1]) if found else None) == grades


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ("No OA.", {0, 1}),
        ("Joint effusion of right knee joint without osteoarthritis.", {0, 1}),
        ("Normal left knee radiograph. Joint space is preserved.", {0, 1}),
        ("Left knee is unremarkable.", {0, 1}),
        ("No significant bony abnormality of the left knee.", {0, 1}),
        ("Questionable early degenerative change in the left knee.", {0, 1, 2}),
        ("Possible osteophytic lipping.", {0, 1, 2}),
        ("Minimal OA of the left knee. Possible joint space narrowing.", {1, 2, 3}),
        ("mild-to-moderate OA", {1, 2, 3, 4}),
        ("Osteoarthritis is moderate.", {2, 3, 4}),
        ("moderately severe degenerative change", {2, 3, 4}),
        ("Severe pain and mild OA", {1, 2, 3}),
        ("OA, severe", {3, 4}),
        ("End-stage degenerative change, bone on bone.", {3, 4}),
        ("Bone on bone.", {3, 4}),
        ("No OA of the patellofemoral joint; severe medial OA", {0, 1, 3, 4}),
        ("No significant OA", None),
        ("no severe OA", None),
        ("No progression of OA", None),
        ("Normal knee alignment.", None),
        ("No abnormality of alignment.", None),
        ("No acute bony abnormality.", None),
        ("Otherwise normal knee", None),
        ("Abnormal knee.", None),
        ("No definite osteophytes", None),
        ("Fracture of medial tibial plateau.", None),
        ("Total knee arthroplasty.", None),
    ],
)
def test_words_allow_a_grade_to_either_side(text, grades):
    found = grades_in_text(text)
    assert (set(found[1]) if found else None) == grades


def test_contradiction_names_both():
    (issue,) = check_grade(table((1, "Mild OA."), (4, "Mild OA of the left knee."), (None, "Severe OA.")), KNEE)
    assert (issue.severity, issue.check, issue.row) == ("warning", "grade_contradiction", 3)
    assert issue.message == "kl_grade is 4, but the impression says 'mild oa': grades 1-3"


def test_reference_wordings_contradict_every_distant_grade_and_no_near_one(monkeypatch):
    monkeypatch.setattr(issue_module, "ROWS_LISTED", 1000)
    rng = random.Random(0)
    texts = [(int(grade), text) for grade, wordings in KL_WORDINGS.items() for text in wordings]
    near, planted = [], []
    for grade, text in rng.choices(texts, k=200):
        named = text.format(side="left", Side="Left")
        near.append((grade, named))
        planted.append((rng.choice([other for other in range(5) if abs(other - grade) > 1]), named))
    assert check_grade(table(*near), KNEE) == []
    assert len(check_grade(table(*planted), KNEE)) == 200


def test_no_column_no_issue():
    assert check_grade(table((4, "No OA.")).drop(columns="kl_grade"), KNEE) == []
