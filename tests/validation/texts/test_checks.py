import pandas as pd
import pytest

from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.sample.findings import SIDES, draw_labels
from knee_siglip.sample.impression import text_alternatives
from knee_siglip.tables.text import load_tokenizer, normalise_text
from knee_siglip.validation.texts.checks import check_texts, templated_share, text_metrics
from knee_siglip.validation.texts.tokens import Tokens
from toys import KNEE


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL_FOLDER / "text")


def table(*rows: tuple[str, str], **columns: list) -> pd.DataFrame:
    """(split, impression) pairs, numbered from 2, and further columns."""
    made = pd.DataFrame(rows, columns=["split", "impression"], dtype=str).assign(**columns)
    paths = [f"{n}.png" for n in range(len(made))]
    made = made.assign(img_path=paths, text=made["impression"].map(normalise_text))
    return made.set_index(pd.RangeIndex(2, len(made) + 2, name="row"))


def tokens(tokenizer, made: pd.DataFrame) -> Tokens:
    return Tokens(tokenizer, made["text"], 64)


def checks(issues) -> list[tuple[str, int | None]]:
    return [(issue.check, issue.row) for issue in issues]


def test_sample_texts_raise_nothing(tokenizer):
    import numpy as np

    rng = np.random.default_rng(0)
    rows, sides, grades = [], [], []
    for number in range(1500):
        side = SIDES[number % 2]
        labels = draw_labels(rng, side)
        for text in text_alternatives(labels):
            rows.append(("train", text))
            sides.append(side)
            grades.append(labels.kl_grade)
    made = table(*rows, side=sides, kl_grade=pd.array(grades, dtype="Int64"))
    assert check_texts(made, tokens(tokenizer, made), KNEE) == []


def test_every_check_is_called(tokenizer):
    made = table(
        ("train", "nan"),
        ("train", "Clinical correlation recommended."),
        ("train", "OA &amp; effusion"),
        ("train", "Mäßige Gonarthrose rechts ohne Erguss"),
        ("train", "Mrs Doe"),
        ("train", "Normal right knee."),
        ("train", "KL 2"),
        ("val", "Long text. " * 40),
        side=["", "", "", "", "", "left", "", ""],
        kl_grade=["", "", "", "", "", "", "3", ""],
    )
    assert checks(check_texts(made, tokens(tokenizer, made), KNEE)) == [
        ("missing_text", 2),
        ("boilerplate_text", 3),
        ("html_entity", 4),
        ("foreign_language", 5),
        ("personal_data", 6),
        ("side_contradiction", 7),
        ("grade_contradiction", 8),
        ("truncated_text", None),
    ]


def test_without_a_tokenizer_the_rest_is_checked_and_it_is_said():
    made = table(("train", "nan"), ("val", "Normal."))
    assert checks(check_texts(made, None, KNEE)) == [("missing_text", 2), ("tokens_not_checked", None)]
    assert "truncated_share" not in text_metrics(made, None)


@pytest.mark.parametrize(("equal", "found"), [(10, False), (11, True)])
def test_one_text_for_most_of_a_split(tokenizer, equal, found):
    texts = ["Normal knee."] * equal + [f"Mild OA {chr(97 + n)}." for n in range(20 - equal)]
    made = table(*[("train", text) for text in texts])
    issues = check_texts(made, tokens(tokenizer, made), KNEE)
    assert bool(issues) == found
    if found:
        assert issues[0].check == "repeated_text"
        assert "11 of 20 rows (55.0%) of split train" in issues[0].message


def test_few_rows_may_be_equal(tokenizer):
    made = table(*[("train", "Normal knee.")] * 19)
    assert check_texts(made, tokens(tokenizer, made), KNEE) == []


@pytest.mark.parametrize(("known", "found"), [(1, False), (2, True)])
def test_texts_known_from_training(tokenizer, known, found):
    held_out = [("test", "NORMAL knee"), ("val", "Mild OA." if known == 2 else "Severe OA."), ("test", "Moderate OA.")]
    made = table(("train", "Normal knee."), ("train", "Mild OA"), *held_out)
    assert templated_share(made) == pytest.approx(known / 3)
    assert bool(check_texts(made, tokens(tokenizer, made), KNEE)) == found


def test_metrics(tokenizer):
    made = table(
        ("train", "Normal knee."), ("train", "Mild OA of the knee"), ("val", "normal knee"), ("test", "Severe OA")
    )
    assert text_metrics(made, tokens(tokenizer, made)) == {
        "distinct": 3,
        "most_frequent_share": 0.5,
        "templated_share": 0.5,
        "words_median": 2.0,
        "words_min": 2,
        "words_max": 5,
        "max_text_length": 64,
        "truncated_share": 0.0,
        "tokens_median": 3.0,
        "tokens_max": 6,
        "unknown_word_share": 0.0,
    }


def test_no_rows_have_metrics_and_no_issues(tokenizer):
    empty = table()
    assert check_texts(empty, tokens(tokenizer, empty), KNEE) == []
    assert text_metrics(empty, tokens(tokenizer, empty))["distinct"] == 0
