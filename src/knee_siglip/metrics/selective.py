"""Selective prediction: how many mistakes are left when the model may abstain where it is unsure."""

from dataclasses import dataclass

import numpy as np

from knee_siglip.metrics.calibration import share_among_ties


@dataclass(frozen=True)
class RiskCoverage:
    """Risk among the most confident rows, from one of them to all N.

    confidence: (N,) of the rows, the most confident first; as a threshold it keeps that row and those before it.
    risk: (N,) share of mistakes among that row and those before it.
    """

    confidence: np.ndarray
    risk: np.ndarray

    @property
    def coverage(self) -> np.ndarray:
        """(N,) share of the rows that are answered."""
        return np.arange(1, len(self.risk) + 1) / max(1, len(self.risk))

    @property
    def aurc(self) -> float:
        """Area under the curve, the mean risk over all coverages: Geifman et al. 2019 (arXiv:1805.08206), section 3."""
        return float(self.risk.mean()) if len(self.risk) else float("nan")

    def rows_at(self, coverage: float) -> int:
        """The fewest rows that are at least this share (above 0) of all."""
        return int(np.ceil(round(coverage * len(self.risk), 9)))

    def accuracy_at(self, coverage: float) -> float:
        """Share of right answers among the most confident rows, `rows_at(coverage)` of them; NaN without rows."""
        return 1 - float(self.risk[self.rows_at(coverage) - 1]) if len(self.risk) else float("nan")


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """The curve of a confidence (N,) and whether each row is right (N,); rows of equal confidence share their mistakes.

    Source: El-Yaniv & Wiener 2010, On the foundations of noise-free selective classification, section 2.
    """
    order = np.argsort(-confidence, kind="stable")
    mistakes = 1 - share_among_ties(confidence, correct)[order]
    return RiskCoverage(confidence[order], np.cumsum(mistakes) / np.arange(1, len(order) + 1))
