"""Text as the pattern checks read it."""

import unicodedata

MARKS = str.maketrans({**dict.fromkeys("‐‑‒–—―−", "-"), **dict.fromkeys("'’‘`´ʼ", "")})


def plain(text: str) -> str:
    """Lower case, unified dashes, single spaces, no apostrophes.

    Unlike `normalise_text` it keeps the punctuation, which tells sentences, ranges and headings apart.
    """
    return " ".join(unicodedata.normalize("NFKC", text).translate(MARKS).lower().split())
