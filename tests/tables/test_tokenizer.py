"""The tokenizer gives what the library's own gives for every text that it can meet."""

import json
import shutil

import pytest
from transformers import SiglipTokenizer as LibraryTokenizer

from knee_siglip.core.errors import UserError
from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.tables.text import load_tokenizer, normalise_text
from knee_siglip.tables.tokenizer import SENTENCEPIECE_FILE, TOKENIZER_CONFIG, SiglipTokenizer

FOLDER = SMALL_FOLDER / "text"
TEXTS = (
    "",
    "Severe osteoarthritis of the right knee, KL 4.",
    "unk </s> <unk> x",
    "Zażółć gęślą jaźń 漢字 ß ﬁ 1½ 40 % >3mm",
    "a" * 300,
    "No effusion; joint-space narrowing " * 20,
    "🙂 ▁ kl",
)


@pytest.fixture(scope="module")
def pair():
    return SiglipTokenizer(FOLDER), LibraryTokenizer.from_pretrained(FOLDER)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_their_text_are_the_librarys(pair, text):
    ours, theirs = pair
    text = normalise_text(text)
    for options in ({}, {"add_special_tokens": False}, {"truncation": True, "max_length": 16}):
        assert ours(text, **options)["input_ids"] == theirs(text, **options)["input_ids"]
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_several_texts_at_once_and_the_special_tokens(pair):
    ours, theirs = pair
    texts = [normalise_text(text) for text in TEXTS]
    assert ours(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert len(ours) == len(theirs)
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_saved_it_is_the_same_to_the_library(pair, tmp_path):
    pair[0].save_pretrained(tmp_path)
    again = LibraryTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS[1].lower())["input_ids"] == pair[1](TEXTS[1].lower())["input_ids"]


def test_a_special_token_outside_the_vocabulary_is_named(tmp_path):
    shutil.copyfile(FOLDER / SENTENCEPIECE_FILE, tmp_path / SENTENCEPIECE_FILE)
    (tmp_path / TOKENIZER_CONFIG).write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    with pytest.raises(UserError, match="special token '<end>' is not in its vocabulary"):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_one_sentence(tmp_path):
    (tmp_path / SENTENCEPIECE_FILE).write_bytes(b"no pieces")
    with pytest.raises(UserError, match=r"holds no tokenizer \(spiece\.model"):
        load_tokenizer(tmp_path)
    shutil.copyfile(FOLDER / SENTENCEPIECE_FILE, tmp_path / SENTENCEPIECE_FILE)
    for config in ("[]", "null", "[" * 9_999):
        (tmp_path / TOKENIZER_CONFIG).write_text(config)
        with pytest.raises(UserError, match=r"holds no tokenizer"):
            load_tokenizer(tmp_path)
