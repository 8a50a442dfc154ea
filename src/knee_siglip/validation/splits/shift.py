"""Distribution shift: are val and test drawn from the same cohort as train?

Each feature of val and of test is compared with train's: numbers by the two-sample Kolmogorov-Smirnov test, whose
statistic (the largest gap between the two cumulative shares) is also the effect size; categories by chi-squared, with
Cramer's V as effect size. Rows of one patient are not independent, and two knees would count twice as evidence: every
patient weighs 1, spread over their rows, and the tests count patients, not rows. That errs on the quiet side: the mean
of two knees scatters less than one knee does. Where no patient is known, a
study, else an image, counts as one (`independent_units`).

p values are corrected for all comparisons by Holm 1979. A warning needs a small p AND a large effect: among 100,000
rows a difference of no consequence is significant, and among 20 a large gap is chance. In 400 random splits of 2,100
real and of 2,120 drawn radiographs there was no warning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.metrics.significance import holm_adjusted
from knee_siglip.tables.ids import independent_units
from knee_siglip.task.task import Labels, Task
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.splits.cohort import DECIMALS, text_words

P_VALUE = 0.01
"""After Holm's correction: at most one in a hundred clean data sets gets a warning."""

KS_FLOOR = 0.15
"""Normal distributions whose means lie 0.38 standard deviations apart: between Cohen's small (0.2) and medium (0.5)."""

V_FLOOR = 0.15
"""Shares of 0.50 and 0.65, two splits of equal weight: between Cohen's small (0.1) and medium (0.3) w."""

MIN_PATIENTS = 10
"""In either split; with fewer, no test says anything."""

MIN_EXPECTED = 5
"""Patients expected in every cell of a chi-squared table (Cochran 1954); rarer categories are counted together."""

NUMBERS = {
    "mean": "the mean grey (0-255)",
    "std": "the contrast (standard deviation of the greys)",
    "width": "the image width",
    "height": "the image height",
    "file_bytes": "the file size in bytes",
    "text_words": "the length of the texts in words",
}
OF_VIEWS = {"side": "the side", "view": "the view"}
OF_FILES = {"bits": "the bit depth", "kind": "the file format"}


def feature_names(labels: Labels) -> tuple[dict[str, str], dict[str, str]]:
    """Numbers and categories that are compared: column to what sentences call it. Grades are both."""
    label = {labels.column: f"the {labels.column}"} if labels else {}
    return NUMBERS | (label if labels.are_numbers else {}), OF_VIEWS | label | OF_FILES


@dataclass(frozen=True)
class Weighted:
    """Known values (N,) of a feature in one split, and weights (N,) that sum to 1 for each patient who has one."""

    values: np.ndarray
    weights: np.ndarray

    @property
    def patients(self) -> int:
        """Their number."""
        return round(self.weights.sum())


@dataclass(frozen=True)
class Comparison:
    """One feature of a split against train's. test: ks or cramers_v; p: Holm-corrected once all are known."""

    split: str
    feature: str
    test: str
    effect: float
    p: float
    patients: int
    detail: str

    @property
    def shifted(self) -> bool:
        """Whether the difference is both significant and large."""
        return self.p < P_VALUE and self.effect >= (KS_FLOOR if self.test == "ks" else V_FLOOR)


def check_shift(table: pd.DataFrame, task: Task) -> tuple[dict[str, Any], list[Issue]]:
    """Compare val and test with train, feature by feature.

    Returns `{split: {feature: {ks, ks_p, cramers_v, cramers_v_p}}}` as far as it can be computed, and a warning for
    each shifted feature of a split.
    """
    rows = table[table["image_id"] != ""]
    rows = rows.assign(text_words=text_words(rows), patient=independent_units(rows).numbers)
    parts = {split: part for split, part in rows.groupby("split") if part["patient"].nunique() >= MIN_PATIENTS}
    pairs = [(split, parts["train"], parts[split]) for split in ("val", "test") if {"train", split} <= set(parts)]
    compared = [comparison for pair in pairs for comparison in _compare(*pair, task.labels)]
    corrected = holm_adjusted([each.p for each in compared])
    comparisons = [replace(each, p=p) for each, p in zip(compared, corrected, strict=True)]
    metrics: dict[str, Any] = {}
    for each in comparisons:
        feature = metrics.setdefault(each.split, {}).setdefault(each.feature, {})
        feature |= {each.test: round(each.effect, DECIMALS), f"{each.test}_p": round(each.p, DECIMALS)}
    return metrics, _issues(comparisons, task.labels)


def _compare(split: str, train: pd.DataFrame, other: pd.DataFrame, labels: Labels) -> Iterator[Comparison]:
    numbers, categories = feature_names(labels)
    kinds = (("number", numbers, _compare_numbers), ("category", categories, _compare_shares))
    for kind, features, compare in kinds:
        for feature in features:
            if feature in train.columns:
                samples = _known(train[["patient", feature]], kind), _known(other[["patient", feature]], kind)
                if min(sample.patients for sample in samples) >= MIN_PATIENTS:
                    yield from compare(split, feature, *samples)


def _compare_numbers(split: str, feature: str, train: Weighted, other: Weighted) -> Iterator[Comparison]:
    from scipy.stats import kstwo

    statistic = kolmogorov_smirnov(train, other)
    size = train.patients * other.patients / (train.patients + other.patients)
    p = float(kstwo.sf(statistic, round(size)))  # the asymptotic p of scipy.stats.ks_2samp
    detail = f"median {np.median(train.values):.4g} in train and {np.median(other.values):.4g} in {split}"
    yield Comparison(split, feature, "ks", statistic, p, other.patients, detail)


def _compare_shares(split: str, feature: str, train: Weighted, other: Weighted) -> Iterator[Comparison]:
    from scipy.stats import chi2_contingency

    columns = {"train": train, split: other}
    counts = pd.DataFrame({name: pd.Series(part.weights).groupby(part.values).sum() for name, part in columns.items()})
    counts = _gather_rare(counts.fillna(0.0))
    if len(counts) < 2:
        return
    p = float(chi2_contingency(counts.to_numpy(), correction=False).pvalue)
    shares = counts / counts.sum()
    widest = int((shares[split] - shares["train"]).abs().to_numpy().argmax())
    before, after = shares.iloc[widest]
    detail = f"{list(map(str, shares.index))[widest]} is {before:.0%} of train and {after:.0%} of {split}"
    yield Comparison(split, feature, "cramers_v", cramers_v(shares.to_numpy()), p, other.patients, detail)


def kolmogorov_smirnov(first: Weighted, second: Weighted) -> float:
    """Largest gap between the two weighted cumulative distributions, 0 to 1."""
    _, places = np.unique(np.concatenate([first.values, second.values]), return_inverse=True)
    shares = np.concatenate([first.weights / first.weights.sum(), -second.weights / second.weights.sum()])
    return float(np.abs(np.bincount(places, shares).cumsum()).max())


def cramers_v(shares: np.ndarray) -> float:
    """Cramer's V of (C, 2) category shares of two groups that weigh the same: 0 for equal shares, 1 for disjoint ones.

    Cramer 1946, chapter 21. With the real sizes as weights the same gap would count for less in a small split.
    """
    pooled = shares.mean(axis=1)
    return float(np.sqrt((((shares - pooled[:, None]) ** 2).sum(axis=1) / (2 * pooled)).sum()))


def _gather_rare(counts: pd.DataFrame) -> pd.DataFrame:
    """Categories (rows) too rare for chi-squared become `others`, or join the rarest of the rest."""
    smallest = counts.sum().min() / counts.to_numpy().sum()
    rare = counts.sum(axis=1) * smallest < MIN_EXPECTED
    if not rare.any():
        return counts
    others, counts = counts[rare].sum(), counts[~rare]
    if others.sum() * smallest >= MIN_EXPECTED:
        return pd.concat([counts, others.to_frame("others").T])
    if len(counts):
        rarest = counts.index == counts.sum(axis=1).idxmin()
        counts = counts + np.outer(rarest, others)
    return counts


def _issues(comparisons: Sequence[Comparison], labels: Labels) -> list[Issue]:
    """One warning for each shifted feature of a split, by its larger effect."""
    largest: dict[tuple[str, str], Comparison] = {}
    for each in sorted((each for each in comparisons if each.shifted), key=lambda each: -each.effect):
        largest.setdefault((each.split, each.feature), each)
    return [Issue("warning", "distribution_shift", None, "", _sentence(each, labels)) for each in largest.values()]


def _sentence(shift: Comparison, labels: Labels) -> str:
    numbers, categories = feature_names(labels)
    name = (numbers | categories)[shift.feature]
    size = "Kolmogorov-Smirnov" if shift.test == "ks" else "Cramer's V"
    return (
        f"{name} differs between train and {shift.split}: {shift.detail} ({size} {shift.effect:.2f}, corrected p "
        f"{shift.p:.1g}, {shift.patients} patients in {shift.split}); figures on {shift.split} then also measure this "
        "difference: say so where it is meant (another hospital), else draw the splits anew with knee-siglip split"
    )


def _known(rows: pd.DataFrame, kind: str) -> Weighted:
    """rows: patient and a feature. A category is text without case and outer spaces: `AP ` and `ap` are one."""
    patients, values = rows.iloc[:, 0], rows.iloc[:, 1]
    if kind == "category":
        names = values.astype("string").str.strip().str.lower()
        values = names.mask(names == "")
    patients, values = patients[values.notna()], values.dropna()
    weights = 1 / patients.groupby(patients).transform("size")
    return Weighted(values.to_numpy(dtype=np.float64 if kind == "number" else object), weights.to_numpy())
