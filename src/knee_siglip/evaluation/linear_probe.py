"""What the image embeddings know of the grade where labels may be learnt from: linear probe and nearest neighbours.

Both read the final L2-normalised image embeddings, as retrieval does. Train gives the labels, val chooses C or k, and
the metrics are of a third split.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.bootstrap import interval_of, kappa_statistic, mean_statistic
from knee_siglip.metrics.grading import agreement_metrics

SHARES = (1, 10, 100)
"""Percent of the train patients whose labels are seen."""

SEEDS = range(5)
C_GRID = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse strength of the L2 penalty. The embeddings are short (length 1), so weak penalties are needed as well."""

NEIGHBOURS = (1, 5, 10, 20, 50)
SOLVER = "newton-cg"
"""Newton's method: on the sample a quarter of the iterations, and an eighth of the time, of scikit-learn's default."""

MAX_ITERATIONS = 200
"""Bounds the time; the sample's fits converge within 10."""

MOST_ROWS = 50_000
"""Labelled rows of train and of val that the probes see at most, drawn by patient; every row of the third split is
measured. Below it more labels hardly change a probe, above it nearest neighbours take hours."""

SHOWN = ("accuracy", "quadratic_weighted_kappa")

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Labelled:
    """Graded rows of a split: embeds (G, D), grades (G,) of so many classes, patients (G,)."""

    embeds: np.ndarray
    grades: np.ndarray
    patients: np.ndarray
    classes: int

    @classmethod
    def of(cls, split: EmbeddedSplit) -> "Labelled":
        """The graded rows of a split."""
        rows = split.graded
        return cls(split.image_embeds[rows], split.grades, split.patients[rows], len(split.task.labels))

    def capped(self) -> "Labelled":
        """At most MOST_ROWS of them, the same in every run: by patient, in the proportions of their worst grades."""
        if len(self.grades) <= MOST_ROWS:
            return self
        rows = draw_labels(self.grades, self.patients, 100 * MOST_ROWS / len(self.grades), SEEDS[0])
        return self.take(rows[:MOST_ROWS])

    def take(self, rows: np.ndarray) -> "Labelled":
        """Only these rows."""
        return Labelled(self.embeds[rows], self.grades[rows], self.patients[rows], self.classes)


def probe_table(split: EmbeddedSplit, data: EmbeddedData) -> list[Row]:
    """One row per fit: `method` (linear_probe or knn), `share` in percent, `seed`, what it learnt from and its metrics.

    `patients`, `labels`: how many it learnt from; `available`: graded rows of train, of which at most MOST_ROWS are
    used; `chosen`: C or k. Empty where train, val or the split itself has no grades, and for train and val. All labels
    are drawn once: every seed would give the same.
    """
    if split.name in ("train", "val") or not {"train", "val"} <= data.splits.keys():
        return []
    everything = Labelled.of(data.splits["train"])
    train = everything.capped()
    val = Labelled.of(data.splits["val"]).capped()
    test = Labelled.of(split)
    if not (len(train.grades) and len(val.grades) and len(test.grades)):
        return []
    table: list[Row] = []
    for share in SHARES:
        for seed in SEEDS if share < 100 else SEEDS[:1]:
            drawn = train.take(draw_labels(train.grades, train.patients, share, seed))
            if len(np.unique(drawn.grades)) > 1:
                candidates = [(c, LogisticRegression(C=c, solver=SOLVER, max_iter=MAX_ITERATIONS)) for c in C_GRID]
                found = _best(candidates, drawn, val, test)
                table.append({"method": "linear_probe", "share": share, "seed": seed, **found})
    neighbours = [(k, KNeighborsClassifier(k, algorithm="brute")) for k in NEIGHBOURS if k <= len(train.grades)]
    table.append({"method": "knn", "share": 100, "seed": SEEDS[0], **_best(neighbours, train, val, test)})
    return [row | {"available": len(everything.grades)} for row in table]


def probe_metrics(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """linear_probe.share_<percent>.<metric>, the mean over seeds, and <metric>_std; knn.<metric>.

    Of a single fit also <metric>_ci_low and _ci_high, over the patients of the split it is measured on.

    linear_probe.train_rows and .train_rows_available where MOST_ROWS left some out.
    """
    metrics: dict[str, float] = {}
    if (available := max((int(row["available"]) for row in table), default=0)) > MOST_ROWS:
        metrics["linear_probe.train_rows"] = max(int(row["labels"]) for row in table)
        metrics["linear_probe.train_rows_available"] = available
    for share in SHARES:
        rows = [row for row in table if row["method"] == "linear_probe" and row["share"] == share]
        for name in SHOWN:
            values = [float(row[name]) for row in rows if name in row]
            if values:
                metrics[f"linear_probe.share_{share}.{name}"] = float(np.mean(values))
            if len(rows) == 1:
                metrics |= {f"linear_probe.share_{share}.{key}": float(rows[0][key]) for key in _ends(name, rows[0])}
            if len(values) > 1:
                metrics[f"linear_probe.share_{share}.{name}_std"] = float(np.std(values))
    for row in table:
        if row["method"] == "knn":
            metrics |= {f"knn.{name}": float(row[name]) for name in SHOWN if name in row}
            metrics |= {f"knn.{key}": float(row[key]) for name in SHOWN for key in _ends(name, row)}
    return metrics


def _ends(name: str, row: Mapping[str, Any]) -> list[str]:
    return [key for key in (f"{name}_ci_low", f"{name}_ci_high") if key in row]


def draw_labels(grades: np.ndarray, patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Row numbers of `share` percent of the patients, in the proportions of their worst grades.

    At least one patient of each worst grade, or a small share would have nothing to learn.

    Args:
        grades: (G,), patients: (G,) integers of each row.
    """
    distinct, patient_of = np.unique(patients, return_inverse=True)
    worst = np.full(len(distinct), -1)
    np.maximum.at(worst, patient_of, grades)
    order = np.random.default_rng(seed).permutation(len(distinct))
    place = np.zeros(len(distinct))  # among the patients of the same grade, from 0 to below 1
    strata = [order[worst[order] == grade] for grade in np.unique(worst)]
    for members in strata:
        place[members] = np.arange(len(members)) / len(members)
    count = max(len(strata), round(share / 100 * len(distinct)))
    chosen = order[np.argsort(place[order], kind="stable")][:count]
    return np.flatnonzero(np.isin(patient_of, chosen))


def _best(
    candidates: Sequence[tuple[float, LogisticRegression | KNeighborsClassifier]],
    drawn: Labelled,
    val: Labelled,
    test: Labelled,
) -> dict[str, int | float]:
    """Facts and metrics of the candidate, (C or k, classifier), that is most accurate on val; of equals the first."""
    tried = []
    for value, classifier in candidates:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # MAX_ITERATIONS is meant
            warnings.filterwarnings("ignore", "Line Search failed")  # at the optimum, to rounding
            classifier.fit(drawn.embeds, drawn.grades)
        tried.append((float((classifier.predict(val.embeds) == val.grades).mean()), value, classifier))
    _, chosen, best = max(tried, key=lambda each: each[0])
    predicted = best.predict(test.embeds)
    metrics = agreement_metrics(test.grades, predicted, test.classes)
    bounds = {
        "accuracy": interval_of(mean_statistic((predicted == test.grades).astype(np.float64)), test.patients),
        "quadratic_weighted_kappa": interval_of(kappa_statistic(test.grades, predicted), test.patients),
    }
    return {
        "patients": len(np.unique(drawn.patients)),
        "labels": len(drawn.grades),
        "chosen": chosen,
        **{name: metrics[name] for name in SHOWN if name in metrics},
        **{f"{name}_ci_low": bound.low for name, bound in bounds.items() if bound},
        **{f"{name}_ci_high": bound.high for name, bound in bounds.items() if bound},
    }
