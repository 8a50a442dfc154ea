"""One clinical-text normalisation and one tokenisation, with the tokenizer that ships with the project."""

import random
import string
import subprocess
import sys

import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.sample.findings import SIDES, draw_labels
from knee_siglip.sample.impression import text_alternatives
from knee_siglip.tables.text import load_tokenizer, normalise_text, token_counts, tokenize

END = 1


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SMALL_FOLDER / "text")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Severe OA of both knee joint with varus angulation.", "severe oa of both knee joint with varus angulation"),
        ("KL grade 2-3", "kl grade 2 to 3"),
        ("Schatzker II–III", "schatzker ii to iii"),
        ("1.5 mm; 1,5mm; .5 cm", "1 point 5 mm 1 point 5 mm 0 point 5 cm"),
        ("10 - 15°, 40 %", "10 to 15 degrees 40 percent"),
        (">3 mm, ≤5 mm, >= 2", "more than 3 mm at most 5 mm at least 2"),
        ("T-score -2.5, +/- 1", "t score minus 2 point 5 plus or minus 1"),
        ("KL-4 KL4 KL: 4", "kl 4 kl 4 kl 4"),
        ("3x4mm", "3 by 4 mm"),
        ("1½ of 5/5", "1 and 1 over 2 of 5 over 5"),
        ("12/03/2024 and 2024-03-12", "12 03 2024 and 2024 03 12"),
        ("joint-space narrowing/effusion", "joint space narrowing effusion"),
        ("?fracture w/o Baker’s cyst", "possible fracture without bakers cyst"),
        ("L>R, no #", "l more than r no fracture"),
        ("grade 3.Normal patella,effusion", "grade 3 normal patella effusion"),
        (" two\r\n\tlines\u00a0here ", "two lines here"),
        ("ﬁbula ＫＬ４ soft\u00adhyphen", "fibula kl 4 softhyphen"),
        ("</s> severe <unk>", "severe"),
        ("...", ""),
    ],
)
def test_meaning_on_punctuation_is_spelled_out(text, expected):
    assert normalise_text(text) == expected


def test_normalising_twice_changes_nothing():
    rng = random.Random(0)
    alphabet = "abklx iv0123456789.,-/+<>=%#?'’½°±×mc m\n\u0301\u00adİßǅﬁ膝"
    for _ in range(20_000):
        text = normalise_text("".join(rng.choices(alphabet, k=rng.randint(1, 14))))
        assert normalise_text(text) == text


def test_the_librarys_tokenizer_finds_nothing_to_strip():
    from transformers import SiglipTokenizer

    text = normalise_text(f"KL 2-3, 1.5 mm {string.punctuation} Ärztlich")
    assert SiglipTokenizer.from_pretrained(SMALL_FOLDER / "text").canonicalize_text(text) == text


def test_no_character_is_lost(tokenizer):
    text = "severe ärztlich 膝 τ 27 kl 4 zygapophysis"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_text_ends_with_one_end_token_and_is_padded_with_it(tokenizer):
    ids = tokenize(tokenizer, ["Normal right knee joint.", "Effusion"], 12)
    assert ids.shape == (2, 12)
    assert (ids[0] != END).sum() == 4
    assert (ids[0, 4:] == END).all()


def test_long_text_is_cut_and_still_padded_to_the_table(tokenizer):
    ids = tokenize(tokenizer, ["severe oa of medial compartment of right knee joint"], 5, pad_to=8)
    assert ids.shape == (1, 8)
    assert (ids[0, :4] != END).all()
    assert (ids[0, 4:] == END).all()


def test_no_texts_give_no_rows(tokenizer):
    assert tokenize(tokenizer, [], 7).shape == (0, 7)
    assert token_counts(tokenizer, []) == []


def test_token_counts_count_the_end_token(tokenizer):
    assert token_counts(tokenizer, ["normal knee", "normal right knee", "Normal right knee."]) == [3, 4, 4]


def test_sample_texts_take_about_a_token_per_word(tokenizer):
    """Re-run scripts/train_small_tokenizer.py where the grammar has outgrown the vocabulary."""
    import numpy as np

    rng = np.random.default_rng(1)
    texts = {text for side in SIDES for _ in range(2000) for text in text_alternatives(draw_labels(rng, side))}
    words = sum(len(normalise_text(text).split()) + 1 for text in texts)
    tokens = sum(len(tokenizer(normalise_text(text))["input_ids"]) for text in texts)
    assert tokens <= 1.15 * words
    assert max(token_counts(tokenizer, sorted(texts))) <= 32


def test_folder_without_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_importing_the_module_does_not_import_torch():
    code = "import knee_siglip.tables.text, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
