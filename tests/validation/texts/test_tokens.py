import pandas as pd
import pytest

from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.tables.text import load_tokenizer, normalise_text, token_counts
from knee_siglip.validation.texts.tokens import Tokens


class Forgetful:
    """One token per word; words with x are unknown, and ä comes back as a."""

    unk_token_id = 0

    def __call__(self, texts, add_special_tokens=True, **_):
        if isinstance(texts, str):
            return {"input_ids": self.ids(texts, add_special_tokens)}
        return {"input_ids": [self.ids(text, add_special_tokens) for text in texts]}

    def ids(self, text, special):
        return [0 if "x" in word else self.learn(word) for word in text.split()] + [1] * special

    def __init__(self):
        self.words = []

    def learn(self, word):
        self.words.append(word)
        return len(self.words) + 1

    def decode(self, ids, **_):
        return " ".join(self.words[id_ - 2].replace("ä", "a") if id_ > 1 else "?" for id_ in ids)


def table(*texts: str) -> pd.DataFrame:
    paths = [f"{n}.png" for n in range(len(texts))]
    normalised = [normalise_text(text) for text in texts]
    index = range(2, len(texts) + 2)
    return pd.DataFrame({"img_path": paths, "impression": texts, "text": normalised}, index=index)


@pytest.fixture(scope="module")
def shipped():
    return load_tokenizer(SMALL_FOLDER / "text")


def test_shipped_tokenizer_loses_nothing(shipped):
    rows = table("Severe OA, KL 2-3, 1.5 mm.", "Ärztlich 膝 🦵 zygapophysis", "Baker's cyst >3 mm")
    assert Tokens(shipped, rows["text"], 64).check(rows) == []


def test_truncated_texts_are_one_finding_with_the_share(shipped):
    rows = table("Normal right knee.", "Mild OA of the left knee joint.", "Normal right knee.", "Severe OA. " * 20)
    (issue,) = Tokens(shipped, rows["text"], 6).check(rows)
    assert (issue.severity, issue.check, issue.row) == ("warning", "truncated_text", None)
    assert "2 of 4 impressions (50.0%) have more than 6 tokens, the longest 41" in issue.message
    assert issue.message.endswith("rows 3, 5")


def test_shares_are_those_of_the_whole_texts(shipped):
    rows = table("Normal right knee.", "Mild OA of the left knee joint.", "Zygapophysis", "Normal right knee.")
    for length in (3, 4, 6, 8, 64):
        metrics = Tokens(shipped, rows["text"], length).metrics(rows["text"])
        counts = token_counts(shipped, rows["text"].tolist())
        assert metrics["truncated_share"] == sum(count > length for count in counts) / 4
    assert metrics["tokens_max"] == 9
    assert metrics["unknown_word_share"] == 0.0


def test_unknown_words_are_told_by_place():
    rows = table("Normal knee.", "Mild xanthoma of exostosis")
    tokens = Tokens(Forgetful(), rows["text"], 64)
    (issue,) = tokens.check(rows)
    assert (issue.check, issue.row) == ("unknown_token", 3)
    assert "words 2, 4" in issue.message
    assert tokens.metrics(rows["text"])["unknown_word_share"] == pytest.approx(2 / 6)


def test_changed_words_are_told_by_place_and_character():
    rows = table("Normal knee.", "Mild ärztlich OA")
    (issue,) = Tokens(Forgetful(), rows["text"], 64).check(rows)
    assert (issue.check, issue.row) == ("changed_by_tokenizer", 3)
    assert "word 2: 'ä' comes back as 'a'" in issue.message


def test_no_rows_have_metrics(shipped):
    rows = table()
    assert Tokens(shipped, rows["text"], 64).metrics(rows["text"])["truncated_share"] == 0.0
