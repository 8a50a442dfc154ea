"""Versions of an impression with its sentences in another order, or without some: `train.augment.sentence_*`.

Sides and negations stay as they were. A text that names several sides keeps its order, since a sentence belongs to the
side named before it; so does one with a sentence that refers to another (`Otherwise normal.`). A sentence that names a
side or denies something is never left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from knee_siglip.pairs.randomness import uniform
from knee_siglip.tables.sides import NAMED
from knee_siglip.tables.text import normalise_text

VERSIONS = 8
"""Drawn once for each text; each step picks one."""

END = re.compile(r"(?<=[.!?;])(?<!\b\d[.])\s+(?=[^\W_])|\s*\n\s*")
"""Between two sentences; `2. Effusion` is one."""

NEGATION = re.compile(
    r"\b(?:no|not|none|nor|never|without|w/o|absen(?:t|ce)|negative|free of|den(?:y|ies|ied)|exclud\w*"
    r"|rul(?:ed?|ing) out|r/o|\w+n['’]t|sin|ning[uú]n[ao]?|sem|n[aã]o|nenhum[ao]?|ohne|kein\w*|nicht|sans|pas|aucune?"
    r"|ni|nem|nie)\b",
    re.IGNORECASE,
)
REFERRING = re.compile(
    r"^(?:\W*)(?:otherwise|also|however|but|and|or|this|these|that|those|it|its|they|same|such|similar(?:ly)?|likewise"
    r"|additional(?:ly)?|further(?:more)?|remaining|the (?:rest|remainder|other|former|latter|same)|elsewhere|again"
    r"|compared?|unlike|than|ipsilateral|por lo dem[aá]s|tambi[eé]n|sonst|ansonsten|auch|par ailleurs|demais)\b",
    re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text; joined by blanks they are it."""
    return [part for part in END.split(text.strip()) if part]


def rewrite(text: str, shuffle: float, drop: float, rng: np.random.Generator) -> str:
    """The text with its sentences shuffled, with probability `shuffle`, and each left out with probability `drop`.

    At least one stays. Where sides or references forbid the one, the other may still happen.
    """
    parts = sentences(text)
    refers = any(REFERRING.search(part) for part in parts)
    moves = shuffle > rng.random() and not refers and sum(bool(name.search(text)) for name in NAMED.values()) <= 1
    kept = [part for part in parts if refers or _says_what_must_stay(part) or rng.random() >= drop]
    kept = kept or [parts[rng.integers(len(parts))]] if parts else []
    return " ".join([kept[place] for place in rng.permutation(len(kept))] if moves else kept)


@dataclass(frozen=True)
class TextVersions:
    """input_ids: (M, VERSIONS, L) of the texts that have versions. places: (U,) each text's place, -1: none."""

    input_ids: Tensor
    places: Tensor

    def pick(self, input_ids: Tensor, distinct: Tensor, keys: Tensor) -> Tensor:
        """(U, L) tokens of one version of each text, by its key; equal keys, equal versions.

        input_ids: (U, L) as they are. distinct: (U,) numbers of the texts, on the CPU. keys: (U,) of `sample_keys`.
        """
        places = self.places[distinct]
        chosen = (uniform(keys.cpu(), 1)[:, 0] * VERSIONS).long()
        versions = self.input_ids[places.clamp(min=0), chosen].to(input_ids)
        return torch.where((places >= 0).unsqueeze(1).to(input_ids.device), versions, input_ids)


def text_versions(texts: Sequence[str], shuffle: float, drop: float, seed: int) -> tuple[list[str], Tensor]:
    """VERSIONS texts for each one that has several, one after the other, and the places (U,) of `TextVersions`.

    A text whose sentences do not normalise to what it does as a whole is left as it is.
    """
    versions: list[str] = []
    places = torch.full((len(texts),), -1, dtype=torch.int64)
    for number, text in enumerate(texts):
        parts = sentences(text)
        if len(parts) < 2 or normalise_text(text) != " ".join(map(normalise_text, parts)):
            continue
        rng = np.random.default_rng([seed, number])
        drawn = [rewrite(text, shuffle, drop, rng) for _ in range(VERSIONS)]
        if any(version != drawn[0] for version in drawn):
            places[number] = len(versions) // VERSIONS
            versions += drawn
    return versions, places


def _says_what_must_stay(sentence: str) -> bool:
    return bool(NEGATION.search(sentence)) or any(name.search(sentence) for name in NAMED.values())
