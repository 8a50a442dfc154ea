"""Shortcuts: do properties of the files alone predict the grade or the split?

In one public set the bit depth gave the class away, and every model trained on it shone. A shallow decision tree
(which finds a middle range as easily as a trend) predicts the target from each kind of feature alone and from all
together, on patients that it was not fitted on. One-vs-rest AUROC of these predictions: 0.5 is chance, 1 is certainty.
The warning looks at the lower end of an interval that is wide enough for all comparisons, so that noise in a small set
gives no alarm.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.tables.ids import independent_units
from knee_siglip.tables.manifest import SPLITS
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.splits.cohort import DECIMALS

FEATURES = {
    "file_size": ("file_bytes",),
    "dimensions": ("width", "height", "aspect"),
    "depth": ("bits", "kind"),
    "intensity": ("mean", "std"),
}
TOGETHER = "together"
NAMES = {
    "file_size": "the file size",
    "dimensions": "the image's width and height",
    "depth": "the bit depth and file format",
    "intensity": "the mean and spread of the greys",
    TOGETHER: "file size, dimensions, bit depth and mean grey together",
}

GRADE_THRESHOLD = 0.7
"""Disease itself shows a little in these features (sclerosis is bright, osteophytes compress worse). The AUROC that
they reach on 2,100 real knees is 0.55; 0.7 leaves room for cohorts in which it shows more."""

SPLIT_THRESHOLD = 0.6
"""Under a random split the truth is exactly 0.5, so a smaller excess already says that the splits were made apart."""

ERROR_RATE = 0.01
"""Chance of a warning where every true AUROC lies at its threshold, over all comparisons (Bonferroni)."""

MIN_ROWS = 50
MIN_PATIENTS = 10
"""With a class, and without it, for it to be predicted: fewer give no interval worth the name."""

MAX_ROWS = 10_000
"""Enough for a standard error of 0.01; more rows only take longer."""

FOLDS = 5
SEED = 0
DEPTH = 4
MIN_LEAF = 5


@dataclass(frozen=True)
class Shortcut:
    """How well one kind of feature tells a class of a target from the rest. low: of the AUROC's one-sided interval."""

    target: str
    feature: str
    label: str
    auroc: float
    low: float


def check_shortcuts(table: pd.DataFrame, task: Task) -> tuple[dict[str, Any], list[Issue]]:
    """Predict the label, whether it is positive, and the split from file size, dimensions, depth and intensity.

    table: as the checks get it; rows without a readable image are left out. Returns `{target: {feature: {auroc,
    highest, highest_low}}}` (mean over the classes, best class, lower end of its interval), without targets and classes
    that have too few rows or patients, and a warning for each feature that gives a class away.
    """
    from scipy.stats import norm

    rows = _draw(table[table["image_id"] != ""])
    examined = [each for target, classes in _targets(rows, task) for each in _examine(target, classes, rows)]
    width = float(norm.isf(ERROR_RATE / max(1, len(examined))))
    shortcuts = [replace(each, low=each.auroc - width * error) for each, error in examined]
    metrics: dict[str, Any] = {}
    for target, feature in dict.fromkeys((each.target, each.feature) for each in shortcuts):
        classes = [each for each in shortcuts if (each.target, each.feature) == (target, feature)]
        best = max(classes, key=lambda each: each.auroc)
        metrics.setdefault(target, {})[feature] = {
            "auroc": round(float(np.mean([each.auroc for each in classes])), DECIMALS),
            "highest": round(best.auroc, DECIMALS),
            "highest_low": round(max(0.0, best.low), DECIMALS),
        }
    return metrics, _issues(shortcuts, task)


def clustered_auroc(scores: np.ndarray, positive: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """AUROC of scores (N,) for positive (N,) bool, and its standard error with rows (N,) of patients 0 ... P-1.

    Sums of the placement values within patients: Obuchowski 1997, doi:10.2307/2533958, whose variance for patients of
    one row each is DeLong's.
    """
    from scipy.stats import rankdata

    assert scores.shape == positive.shape == patients.shape
    ranks, count = rankdata(scores), int(positive.sum())
    within = np.empty(len(scores))
    within[positive], within[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    others = np.where(positive, len(scores) - count, count)
    below = (ranks - within) / others  # share of the other class below this row, ties half
    auroc = float(below[positive].mean())
    influence = np.where(positive, below - auroc, 1 - below - auroc) / (len(scores) - others)
    sums = np.bincount(patients, weights=influence)
    clusters = max(2, len(np.unique(patients)))
    return auroc, float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)))


def _draw(rows: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_ROWS rows of whole patients, drawn by a fixed seed, with `patient` and the made features."""
    rows = rows.assign(
        patient=independent_units(rows).numbers,
        aspect=rows["width"] / rows["height"],
        kind=np.unique(rows["kind"].to_numpy(dtype=str), return_inverse=True)[1],
    )
    if len(rows) <= MAX_ROWS:
        return rows
    sizes = np.bincount(rows["patient"])
    order = np.random.default_rng(SEED).permutation(len(sizes))
    chosen = order[np.cumsum(sizes[order]) <= MAX_ROWS]
    return rows[rows["patient"].isin(chosen)]


def _targets(rows: pd.DataFrame, task: Task) -> Iterator[tuple[str, pd.Series]]:
    """Name and label of each row; the label is missing where it is unknown."""
    labels, asked = task.labels, task.positive
    if labels and labels.column in rows.columns:
        yield labels.column, rows[labels.column].astype("string")
        if asked:
            negative, lowest = " or ".join(labels.values[: asked.lowest]), labels.values[asked.lowest]
            sides = [negative] * asked.lowest + [f"{lowest} or more"] * (len(labels) - asked.lowest)
            named = [sides[grade] if grade >= 0 else None for grade in labels.positions(rows[labels.column])]
            yield f"{labels.column}_{lowest}_or_more", pd.Series(named, index=rows.index, dtype="string")
    yield "split", rows["split"].where(rows["split"].isin(SPLITS)).astype("string")


def _examine(target: str, labels: pd.Series, rows: pd.DataFrame) -> Iterator[tuple[Shortcut, float]]:
    """(shortcut without its lower end, standard error) of each class for each kind of feature."""
    rows, labels = rows[labels.notna()], labels[labels.notna()]
    patients = rows["patient"].to_numpy()
    truth = labels.to_numpy(dtype=str)
    classes = []
    for label in np.unique(truth):
        sizes = len(np.unique(patients[truth == label])), len(np.unique(patients[truth != label]))
        if min(sizes) >= MIN_PATIENTS:
            classes.append(label)
    if len(rows) < MIN_ROWS or not classes:
        return
    folds = _folds(truth, patients)
    for feature, columns in (FEATURES | {TOGETHER: sum(FEATURES.values(), ())}).items():
        values = rows[list(columns)].to_numpy(dtype=np.float64)
        scores = _out_of_fold(values, truth, folds)
        for label in classes[:1] if len(scores) == 2 else classes:  # of two classes both have the same AUROC
            auroc, error = clustered_auroc(scores[label], truth == label, patients)
            yield Shortcut(target, feature, str(label), auroc, 0.0), error


def _folds(truth: np.ndarray, patients: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row numbers fitted on and held out; a patient is held out once, and the classes are spread over all folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class with fewer rows than folds; it is not predicted
        return list(splitter.split(truth, truth, patients))


def _out_of_fold(
    values: np.ndarray, truth: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, np.ndarray]:
    """values: (N, F). For each class the (N,) probability predicted by trees fitted on the other folds."""
    from sklearn.model_selection import cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(
        max_depth=DEPTH, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=SEED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a class that is in one fold alone is never predicted: 0
        predicted = cross_val_predict(tree, values, truth, cv=folds, method="predict_proba")
    return dict(zip(map(str, np.unique(truth)), predicted.T, strict=True))


def _issues(shortcuts: Sequence[Shortcut], task: Task) -> list[Issue]:
    """One warning per target and feature, by its surest class; `together` where no feature does it alone."""
    surest: dict[tuple[str, str], Shortcut] = {}
    for each in sorted(shortcuts, key=lambda each: -each.low):
        if each.low > (SPLIT_THRESHOLD if each.target == "split" else GRADE_THRESHOLD):
            target = "split" if each.target == "split" else "grade"
            surest.setdefault((target, each.feature), each)
    alone = {target for target, feature in surest if feature != TOGETHER}
    return [
        Issue("warning", f"{target}_shortcut", None, "", _sentence(each, task))
        for (target, feature), each in surest.items()
        if feature != TOGETHER or target not in alone
    ]


def _sentence(shortcut: Shortcut, task: Task) -> str:
    what = f"{NAMES[shortcut.feature]} tell{'s' if shortcut.feature == 'file_size' else ''}"
    sure = f"(AUROC on unseen patients {shortcut.auroc:.2f}, at least {max(0.0, shortcut.low):.2f}; chance is 0.5)"
    blind = f"without looking at the {task.subject} {sure}"
    if shortcut.target == "split":
        return (
            f"{what} {shortcut.label} from the other splits, {blind}: the splits come from different sources or were "
            "stored differently, so figures on them do not compare; bring all files to one format, or draw the splits "
            "anew with knee-siglip split"
        )
    return (
        f"{what} {task.labels.column} {shortcut.label} from the rest, {blind}: a model can score well by how the files "
        "were made; bring all files to one format and source, or take every grade from every source"
    )
