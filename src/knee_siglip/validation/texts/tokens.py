"""How a tokenizer treats the impressions: truncation, unknown words, changed characters.

Texts are normalised (tables/text.py), as in every later stage. Unknown words and changed characters are found word by
word: words repeat where texts do not, and the encoders' tokenizers never join two words in one token.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from knee_siglip.tables.text import normalise_text, token_counts
from knee_siglip.tables.tokenizer import Tokenizer
from knee_siglip.validation.issue import Issue, issues_of_texts, name_rows

WORDS_NAMED = 5
SURE_TO_FIT = 0.8
"""A text whose words, one by one, have at most this share of the tokens that fit is not tokenised as a whole."""

CHARACTERS_SHOWN = 3


@dataclass(frozen=True)
class Word:
    """Number of tokens without special ones; whether one is unknown; the word decoded from its tokens."""

    tokens: int
    unknown: bool
    back: str


class Tokens:
    """The tokenizer's work on all distinct normalised texts, done once."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str], length: int) -> None:
        distinct = list(dict.fromkeys(texts))
        self.tokenizer, self.words = tokenizer, _words_of(tokenizer, distinct)
        self.counts = {text: sum(self.words[word].tokens for word in text.split()) + 1 for text in distinct}
        long = [text for text, count in self.counts.items() if count > SURE_TO_FIT * length]
        self.counts.update(zip(long, token_counts(tokenizer, long), strict=True))
        self.length = length

    def check(self, table: pd.DataFrame) -> list[Issue]:
        """All checks of this module. table: img_path and text (normalised), indexed by spreadsheet row."""
        return [*self._truncated(table), *self._unknown(table), *self._changed(table)]

    def metrics(self, texts: pd.Series) -> dict[str, float | int]:
        """Length that texts are cut to; shares (0-1) of cut rows and of unknown words, each occurrence counted."""
        counts = texts.map(self.counts)
        words = texts.map(str.split).explode().dropna()
        unknown = [word for word, facts in self.words.items() if facts.unknown]
        return {
            "max_text_length": self.length,
            "truncated_share": float((counts > self.length).mean()) if len(texts) else 0.0,
            "tokens_median": float(counts.median()) if len(texts) else 0.0,
            "tokens_max": int(counts.max()) if len(texts) else 0,
            "unknown_word_share": float(words.isin(unknown).mean()) if len(words) else 0.0,
        }

    def compared(self, texts: pd.Series, english: Iterable[str]) -> str:
        """What the tokenizer makes of normalised texts, beside English ones: `it cuts a word into 2.9 tokens ...`."""
        reference = [normalise_text(text) for text in english]
        known = _words_of(self.tokenizer, reference)
        theirs, ours = (
            _cut_and_unknown([words[word] for text in rows for word in text.split()])
            for rows, words in ((texts, self.words), (reference, known))
        )
        return (
            f"its tokenizer cuts a word into {theirs[0]:.1f} tokens ({ours[0]:.1f} in English) and does not know "
            f"{theirs[1]:.1%} of the words ({ours[1]:.1%})"
        )

    def _truncated(self, table: pd.DataFrame) -> list[Issue]:
        """One issue with the share: which rows are long is a matter of the set, not of the row."""
        counts = table["text"].map(self.counts)
        rows = [int(row) for row in table.index[counts > self.length]]
        if not rows:
            return []
        message = (
            f"{len(rows):,} of {len(table):,} impressions ({len(rows) / len(table):.1%}) have more than "
            f"{self.length} tokens, the longest {int(counts.max())}: the rest of them is never read; raise "
            f"model.max_text_length or shorten them: {name_rows(rows)}"
        )
        return [Issue("warning", "truncated_text", None, "", message)]

    def _unknown(self, table: pd.DataFrame) -> list[Issue]:
        unknown = {word for word, facts in self.words.items() if facts.unknown}

        def judge(text: str) -> str | None:
            if not (places := _places(text, unknown)):
                return None
            return f"the tokenizer does not know {_name_words(places)}: to it all such words are one"

        return issues_of_texts(table, "unknown_token", judge, "hold words that the tokenizer does not know", "text")

    def _changed(self, table: pd.DataFrame) -> list[Issue]:
        changed = {word for word, facts in self.words.items() if not facts.unknown and facts.back != word}

        def judge(text: str) -> str | None:
            if not (places := _places(text, changed)):
                return None
            first = text.split()[places[0] - 1]
            return f"the tokenizer changes {_name_words(places)}: {_difference(first, self.words[first].back)}"

        return issues_of_texts(table, "changed_by_tokenizer", judge, "hold words that the tokenizer changes", "text")


def _words_of(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Word]:
    """Every distinct word of normalised texts."""
    words = {}
    for word in dict.fromkeys(word for text in texts for word in text.split()):
        ids = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
        back = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()
        words[word] = Word(len(ids), tokenizer.unk_token_id in ids, back)
    return words


def _cut_and_unknown(words: Sequence[Word]) -> tuple[float, float]:
    """Mean number of tokens of a word, and the share (0-1) of unknown words."""
    count = max(len(words), 1)
    return sum(word.tokens for word in words) / count, sum(word.unknown for word in words) / count


def _places(text: str, words: set[str]) -> list[int]:
    """Which words of a text are among `words`, counted from 1."""
    return [place for place, word in enumerate(text.split(), 1) if word in words] if words else []


def _name_words(places: list[int]) -> str:
    """`word 3`, `words 3, 4 ...`: by place, for a word may be a name."""
    more = " ..." if len(places) > WORDS_NAMED else ""
    return f"word{'s' if len(places) > 1 else ''} {', '.join(map(str, places[:WORDS_NAMED]))}{more}"


def _difference(word: str, back: str) -> str:
    """`'ä' comes back as 'a'`: the first place where the two part."""
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, word, back).get_opcodes():
        if kind != "equal":
            came = back[other_start:other_end][:CHARACTERS_SHOWN]
            return f"{word[start:end][:CHARACTERS_SHOWN]!r} comes back as {came!r}"
    return "it comes back otherwise"
