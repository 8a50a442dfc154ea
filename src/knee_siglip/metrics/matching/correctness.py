"""Which candidates are correct for a query."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Correct:
    """What counts as found, for N pairs of an image and its text; query i and candidate i are a pair.

    text_ids: (N,) integers, equal where the texts are: such pairs may be mixed. study_ids: (N,) integers, equal for
    images of one study: their texts tell of the same knees, and may be mixed as well. strict: only the very pair is
    correct, whatever the two say; the reference's definition.
    """

    text_ids: np.ndarray
    study_ids: np.ndarray | None = None
    strict: bool = False

    def __len__(self) -> int:
        return len(self.text_ids)

    @cached_property
    def alike(self) -> np.ndarray:
        """(N,) integers, equal only for rows that have the same correct candidates."""
        if self.strict:
            return np.arange(len(self))
        if self.study_ids is None:
            return self.text_ids
        _, text = np.unique(self.text_ids, return_inverse=True)
        _, study = np.unique(self.study_ids, return_inverse=True)
        told = np.unique(np.stack([study, text]), axis=1)[0]
        beyond_text = np.bincount(told, minlength=1)[study] > 1
        return text * (len(self) + 1) + np.where(beyond_text, study + 1, 0)

    def among(self, rows: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """(B, C) bool: which candidates (C,), across, are correct for which queries (B,), down; or among the rows."""
        others = rows if candidates is None else candidates
        if self.strict:
            return np.equal.outer(rows, others)
        groups = [self.text_ids, *([] if self.study_ids is None else [self.study_ids])]
        return np.logical_or.reduce([np.equal.outer(ids[rows], ids[others]) for ids in groups])


class CorrectCandidates:
    """The correct ones among candidates of which some are copies of each other."""

    def __init__(self, correct: Correct, number_of: np.ndarray) -> None:
        """number_of: (N,) which distinct candidate each row's is."""
        self._correct, self._number_of, self._distinct = correct, number_of, int(number_of.max(initial=-1)) + 1
        if not correct.strict:
            self._by_text = _Members(correct.text_ids)
        self._by_study = None if correct.strict or correct.study_ids is None else _Members(correct.study_ids)
        self._of_text: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(K,) distinct candidates that are correct for query `row`, and (K,) how many copies of each are.

        A candidate may be named twice: for copies with the query's text, and for others of its study.
        """
        if self._correct.strict:
            return self._number_of[row : row + 1], np.ones(1, np.int64)
        text_ids = self._correct.text_ids
        numbers, copies = self._with_text(row)
        if self._by_study is None:
            return numbers, copies
        study = self._by_study.of(row)
        others = self._number_of[study[text_ids[study] != text_ids[row]]]
        return np.concatenate([numbers, others]), np.concatenate([copies, np.ones(len(others), np.int64)])

    def of_any(self, rows: np.ndarray) -> np.ndarray:
        """(K,) distinct candidates that are correct for at least one of the rows."""
        chosen = np.zeros(self._distinct, dtype=bool)
        for row in rows:
            chosen[self.of(row)[0]] = True
        return np.flatnonzero(chosen)

    def _with_text(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        text = int(self._correct.text_ids[row])
        if text not in self._of_text:
            self._of_text[text] = np.unique(self._number_of[self._by_text.of(row)], return_counts=True)
        return self._of_text[text]


class _Members:
    """Rows by group."""

    def __init__(self, ids: np.ndarray) -> None:
        """ids: (N,) integers, equal for rows of one group."""
        _, self._group, sizes = np.unique(ids, return_inverse=True, return_counts=True)
        self._order = np.argsort(self._group, kind="stable")
        self._ends = np.cumsum(sizes)

    def of(self, row: int) -> np.ndarray:
        """Rows of the group that `row` is in."""
        group = self._group[row]
        return self._order[self._ends[group - 1] if group else 0 : self._ends[group]]
