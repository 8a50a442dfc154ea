"""One way to clean a clinical text, and one way to turn it into tokens."""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_siglip.core.errors import UserError
from knee_siglip.tables.tokenizer import SENTENCEPIECE_FILE, SiglipTokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

VULGAR_FRACTION = re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])")
"""Between a whole number and its fraction, which compatibility composition would glue: "1½" is not "11/2"."""

SHORTHAND = {
    "w/o": "without",
    "w/": "with ",
    "c/w": "consistent with",
    "s/p": "status post",
    "h/o": "history of",
    "r/o": "rule out",
    "b/l": "bilateral",
    "and/or": "or",
}

SHARE_UNCUT, MULTIPLE, LONGEST = 0.995, 8, 512
"""Of `max_text_length: auto`: share of training rows that are read whole, step, and limit in tokens."""

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

RULES: tuple[Rule, ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"</?[a-z]+ ?/?>", " "),  # markup, and what a tokenizer would take for its own special tokens
        (r"['’‘`´ʼ]", ""),  # baker's cyst -> bakers cyst, as the tokenizer does
        (r"\b(?:w/o|c/w|s/p|h/o|r/o|b/l|and/or)(?!\w)|\bw/", lambda match: SHORTHAND[match[0]]),
        (r"[‐-―−﹘﹣－]", "-"),
        (r"⁄", "/"),
        (r"(?<!-)-+>|(?<!=)=+>|[→⇒]", " "),
        # Order: a chain of three numbers is a date or an identifier, two are a range, a decimal or a ratio.
        (r"(?<!\d)\d+(?:([-./])\d+)(?:\1\d+)+", lambda match: re.sub(r"\D", " ", match[0])),
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"(?<=\d),(?=\d{1,2} ?(?:mm|cm|degrees?|°|%))", "."),
        (r"(?<=\d)\.(?=\d)", " point "),
        (r"(?<![\w.])\.(?=\d)", " 0 point "),
        (r"\+ ?/ ?-|±", " plus or minus "),
        (r"(?<=\d)( ?%)? ?- ?(?=\d)", r"\1 to "),
        (r"\b([ivx]+) ?- ?([ivx]+)\b", r"\1 to \2"),
        (r"(?<!\w)(?<!\bkl )(?<!\bgrade )(?<!\bstage )(?<!\btype )-(?=\d)", " minus "),
        (r"(?<=\d) ?/ ?(?=\d)", " over "),
        (r"\+", " plus "),
        (r">=|≥|≧|⩾", " at least "),
        (r"<=|≤|≦|⩽", " at most "),
        (r"(?<=\w) ?> ?(?=\w)|> ?(?=\d)", " more than "),
        (r"(?<=\w) ?< ?(?=\w)|< ?(?=\d)", " less than "),
        (r"[~≈] ?(?=\d)", " about "),
        (r"# ?(?=\d)", " number "),
        (r"#", " fracture "),
        (r"(?<!\w)\? ?(?=\w)", " possible "),
        (r"°", " degrees "),
        (r"%", " percent "),
        (r"&", " and "),
        (r"=", " equals "),
        (r"×", " by "),
    )
)

WORD_RULES: tuple[Rule, ...] = (
    (re.compile(r"\bkl(?=\d)"), "kl "),
    (re.compile(r"(?<=\d) ?(mm|cm)? ?x ?(?=\d)"), lambda match: f" {match[1]} by " if match[1] else " by "),
    (re.compile(r"(?<=\d)(?=(?:mm|cm|deg|degrees?)\b)"), " "),
)


def normalise_text(text: str) -> str:
    """Normalise a clinical text, the same way for manifest, training, evaluation, queries and prompts.

    SigLIP's tokenizer lower-cases and deletes ASCII punctuation, so that "KL 2-3, 1.5 mm" would reach the encoder as
    "kl 23 15 mm". Meaning that hangs on punctuation is therefore spelled out in words that a text encoder trained on
    English captions has met, and the rest of the punctuation goes, with a space in its place:

        grade 2-3, II–III     grade 2 to 3 ii to iii        1.5 mm, 1,5 mm, .5      1 point 5 mm 1 point 5 mm 0 point 5
        >3 mm, ≤ 5°           more than 3 mm at most 5 degrees    5/5, 1½           5 over 5 1 and 1 over 2
        -2.5, ±2, 2+, 40 %    minus 2 point 5 plus or minus 2 2 plus 40 percent
        3x4mm, R>L            3 by 4 mm r more than l       joint-space/effusion    joint space effusion
        KL-4, KL4             kl 4 kl 4                     Baker's cyst            bakers cyst
        ?fracture, #, w/o     possible fracture fracture without

    Compatibility forms (NFKC: ligatures, full width, superscripts), all kinds of white space, line ends, dashes and
    quotes are unified, invisible characters removed. The result holds letters, digits and single spaces only. So the
    tokenizer changes nothing more, and two texts are equal exactly when the encoder sees the same. Idempotent.
    Nothing is translated or corrected: "OA" and "osteoarthritis" stay two words.
    """
    text = _compose(VULGAR_FRACTION.sub(" and ", text))
    text = " ".join(text.translate(VISIBLE).split())
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    text = " ".join(_compose(text).translate(WORD_CHARACTERS).split())
    for pattern, replacement in WORD_RULES:
        text = pattern.sub(replacement, text)
    return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """SigLIP's own sentencepiece tokenizer where its file lies in `folder`, else what the folder's config names.

    Raises:
        UserError: `folder` holds no tokenizer that can be read.
    """
    try:
        if (folder / SENTENCEPIECE_FILE).is_file():
            return SiglipTokenizer(folder)
        from transformers import AutoTokenizer  # here, since it takes seconds

        found: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} holds no tokenizer ({SENTENCEPIECE_FILE} of a SigLIP model): {reason}") from None
    tokenizer: Tokenizer = found
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], length: int, pad_to: int | None = None) -> "torch.Tensor":
    """Texts (N,), normalised here, to int64 token ids (N, max(length, pad_to)).

    Cut after `length` tokens, of which the last is the end token; filled up with the pad token (SigLIP's is the end
    token as well). `pad_to` is the length of the encoder's position table: SigLIP was trained padded to all of it,
    without a mask, and pools the last position; so there is no mask here either.
    """
    import numpy as np
    import torch

    width = max(length, pad_to or 0)
    rows = np.full((len(texts), width), tokenizer.pad_token_id, dtype=np.int64)
    if texts:
        for row, ids in zip(rows, _token_ids(tokenizer, texts, length), strict=True):
            row[: len(ids)] = ids
    return torch.from_numpy(rows)


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, with the end token, not truncated."""
    return [len(ids) for ids in _token_ids(tokenizer, texts, None)] if texts else []


def fitting_text_length(counts: Iterable[int], positions: int) -> int:
    """`max_text_length: auto`: tokens that hold 99.5 % of the training texts whole, in steps of 8, up to 512.

    At least the encoder's own position table: shorter texts are padded to it, so a smaller number saves nothing. Beyond
    it the table grows (`extend_positions`), and the text encoder's time with it.

    counts: tokens of each training row's text. positions: length of the encoder's table.
    """
    ordered = sorted(counts)
    needed = ordered[math.ceil(SHARE_UNCUT * len(ordered)) - 1] if ordered else 0
    return max(min(math.ceil(needed / MULTIPLE) * MULTIPLE, LONGEST), positions)


def position_count(text_encoder: Path) -> int:
    """Length of the position table of a text encoder's folder, in tokens.

    Raises:
        UserError: the folder's config does not give it.
    """
    config = text_encoder / "config.json"
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{config} does not give max_position_embeddings, which model.max_text_length: auto needs; give a number"
        ) from None


def _token_ids(tokenizer: Tokenizer, texts: Sequence[str], length: int | None) -> list[list[int]]:
    """Each distinct text is tokenised once: impressions repeat."""
    normalised = [normalise_text(text) for text in texts]
    distinct = list(dict.fromkeys(normalised))
    limit = {"truncation": False} if length is None else {"truncation": True, "max_length": length}
    encoded = tokenizer(distinct, padding=False, return_attention_mask=False, verbose=False, **limit)
    ids_of = dict(zip(distinct, encoded["input_ids"], strict=True))
    return [ids_of[text] for text in normalised]


def _compose(text: str) -> str:
    """Compatibility-composed lower case; lower-casing can leave what composes again."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())


class _CharacterTable(dict[int, str]):
    """For `str.translate`: what becomes of a character, asked once."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        self.rule = rule

    def __missing__(self, code: int) -> str:
        return self.setdefault(code, self.rule(chr(code)))


def _visible(char: str) -> str:
    """A space for white space; nothing for soft hyphens, zero-width and control characters, byte order marks."""
    if char.isspace():
        return " "
    return "" if unicodedata.category(char) in {"Cf", "Cc", "Cs"} else char


def _word_character(char: str) -> str:
    return char if unicodedata.category(char)[0] in "LMN" else " "


VISIBLE, WORD_CHARACTERS = _CharacterTable(_visible), _CharacterTable(_word_character)
