import pandas as pd
import pytest

from knee_siglip.validation.texts.privacy import check_personal_data, personal_data


@pytest.mark.parametrize(
    ("text", "kind", "part"),
    [
        ("Normal knee. Mrs Doe came back.", "a name", "Mrs Doe"),
        ("Seen by DR. DOE", "a name", "DR. DOE"),
        ("Patient: Jane Doe, normal", "a name", "Patient: Jane Doe"),
        ("Name: Doe", "a name", "Name: Doe"),
        ("Normal. Signed by J. Doe", "a signature", "Signed by J. Doe"),
        ("Normal. dictated by JDX", "a signature", "dictated by JDX"),
        ("Discussed with Dr. Doe", "a signature", "Discussed with Dr. Doe"),
        ("Normal. Jane Doe, MD", "a name", "Jane Doe, MD"),
        ("MRN: 0000123", "a record number", "MRN: 0000123"),
        ("Film 0000123 normal", "a long number", "0000123"),
        ("on 01/02/1950.", "a date", "01/02/1950"),
        ("on 1/2/50.", "a date", "1/2/50"),
        ("on 12.03.2024.", "a date", "12.03.2024"),
        ("on 2024-03-12.", "a date", "2024-03-12"),
        ("on 12 March 2024.", "a date", "12 March 2024"),
        ("on March 5, 2024.", "a date", "March 5, 2024"),
        ("call 555-010-0123", "a telephone number", "555-010-0123"),
        ("call +49 89 0000000", "a telephone number", "+49 89 0000000"),
        ("000-12-3456", "a social security number", "000-12-3456"),
        ("to doe@example.org", "an e-mail address", "doe@example.org"),
        ("92 year old woman", "an age over 89", "92 year"),
        ("aged 95", "an age over 89", "aged 95"),
    ],
)
def test_kind_and_place(text, kind, part):
    first = text.index(part) + 1
    assert personal_data(text) == [(kind, first, first + len(part) - 1)]


@pytest.mark.parametrize(
    "text",
    [
        "Baker's cyst, Hoffa fat pad, Osgood-Schlatter disease, Pellegrini-Stieda lesion.",
        "Kellgren-Lawrence grade 2-3; KL 2/3; grade 2/3/4.",
        "1.5 x 2 cm at L4-5, T-score -2.5, 1,000,000.",
        "Dr. Signed by. Reviewed by two readers. Read by radiologist.",
        "Patient: Right knee pain. Patient is a 45 yo male, 89 years old.",
        "MR knee, DR knee AP, MS with gait disorder.",
        "90 degrees of flexion, 100 mm, 95 % sure, ratio 10/12, since 2019.",
        "Pain 95 years ago.",
        "Severe OA of medial compartment of right knee joint with varus angulation.",
    ],
)
def test_usual_language_is_none(text):
    assert personal_data(text) == []


def test_finding_tells_place_and_never_the_text():
    text = "Mrs Doe, 12 March 2024: severe OA"
    table = pd.DataFrame({"img_path": ["a.png"], "impression": [text]}, index=[2])
    (issue,) = check_personal_data(table)
    assert (issue.severity, issue.check, issue.row) == ("warning", "personal_data", 2)
    assert "a name (characters 1-7), a date (characters 10-22)" in issue.message
    assert "Doe" not in issue.message
    assert "2024" not in issue.message


def test_a_text_full_of_it_gives_a_short_sentence():
    table = pd.DataFrame({"img_path": ["a.png"], "impression": ["Mrs Doe. " * 500]}, index=[2])
    (issue,) = check_personal_data(table)
    assert "and 494 more" in issue.message
