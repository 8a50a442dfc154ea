"""Zero-shot grading: how well the most similar class prompt names the grade.

Grades are integers 0 ... C-1 in order of severity: the positions of the task's labels.
"""

from collections.abc import Sequence

import numpy as np

from knee_siglip.metrics.matching.similarity import SCORE_DECIMALS, cosine_scores

# scikit-learn takes a second to import: here it is inside the functions, so that a stage starts without it.


def label_scores(image_embeds: np.ndarray, prompts: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """How well N images fit C labels, each of which has several prompts: a smooth maximum of their cosines.

    log(mean(exp(scale * cosine))) / scale, between mean and maximum, so that an image need not resemble every way to
    say a thing. The softmax of `scale` times the scores is the one over all prompts, of which each label's count as
    one. A single prompt's score is its cosine.

    Args:
        image_embeds: (N, D), L2-normalised.
        prompts: C arrays (P, D), L2-normalised.
        scale: the model's logit scale, above 0.

    Returns:
        (N, C) float64, rounded to `SCORE_DECIMALS`.
    """
    scores = np.empty((len(image_embeds), len(prompts)))
    for label, embeds in enumerate(prompts):
        logits = scale * cosine_scores(image_embeds, embeds)
        scores[:, label] = (np.logaddexp.reduce(logits, axis=1) - np.log(len(embeds))) / scale
    return np.round(scores, SCORE_DECIMALS, out=scores)


def zero_shot_metrics(scores: np.ndarray, grades: np.ndarray) -> dict[str, float]:
    """Metrics of the predicted grade argmax(scores).

    Args:
        scores: (N, C) of each image against each grade's prompts; only their order within a class or a row matters.
        grades: (N,).

    Returns:
        those of `agreement_metrics`; macro_auroc and macro_auprc, the mean one-vs-rest areas over the grades that
        occur. What is undefined for these grades is left out (all without rows; the areas with a single grade).
    """
    if not len(grades):
        return {}
    assert len(scores) == len(grades), (scores.shape, grades.shape)
    metrics = agreement_metrics(grades, predicted_grades(scores), scores.shape[1])
    present = np.unique(grades)
    if len(present) > 1:
        areas = [ranking_areas(grades == grade, scores[:, grade]) for grade in present]
        metrics |= {f"macro_{name}": float(np.mean([area[name] for area in areas])) for name in areas[0]}
    return metrics


def agreement_metrics(grades: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    """How well predicted grades (N,) agree with grades (N,), of so many classes.

    Returns:
        accuracy; balanced_accuracy, the mean recall over the grades that occur; adjacent_accuracy, off by one at most;
        mae, the mean number of grades off; quadratic_weighted_kappa, left out with a single actual grade. Empty
        without rows.
    """
    from sklearn.metrics import accuracy_score, cohen_kappa_score, recall_score

    if not len(grades):
        return {}
    off, present = np.abs(grades - predicted), np.unique(grades)
    metrics = {
        "accuracy": float(accuracy_score(grades, predicted)),
        "balanced_accuracy": float(recall_score(grades, predicted, labels=present, average="macro", zero_division=0)),
        "adjacent_accuracy": float((off <= 1).mean()),
        "mae": float(off.mean()),
    }
    if len(present) > 1:
        kappa = cohen_kappa_score(grades, predicted, labels=np.arange(classes), weights="quadratic")
        metrics["quadratic_weighted_kappa"] = float(kappa)
    return metrics


def grade_metrics(scores: np.ndarray, grades: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """grade_<name>.{recall,auroc,auprc} of each grade that occurs, one against the rest.

    Args:
        scores: (N, C), as in `zero_shot_metrics`. grades: (N,). names: of the C grades.
    """
    if not len(grades):
        return {}
    assert scores.shape == (len(grades), len(names)), (scores.shape, grades.shape, names)
    predicted = predicted_grades(scores)
    metrics: dict[str, float] = {}
    for grade in np.unique(grades):
        truth = grades == grade
        found = {"recall": float((predicted[truth] == grade).mean()), **ranking_areas(truth, scores[:, grade])}
        metrics |= {f"grade_{names[grade]}.{name}": value for name, value in found.items()}
    return metrics


def youden_threshold(score: np.ndarray, truth: np.ndarray) -> float | None:
    """The score (N,) from which on "yes" has the largest sensitivity + specificity - 1 for truth (N,) bool.

    Halfway to the next lower score. None where one answer does not occur, or no threshold is better than a guess.
    Source: Youden 1950, doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3.
    """
    from sklearn.metrics import roc_curve

    if truth.all() or not truth.any():
        return None
    false_positives, true_positives, thresholds = roc_curve(truth, score, drop_intermediate=False)
    gain = true_positives - false_positives
    best = int(gain.argmax())
    if gain[best] <= 0:
        return None
    return float(thresholds[best : best + 2].mean())


def ranking_areas(truth: np.ndarray, score: np.ndarray) -> dict[str, float]:
    """auroc and auprc (average precision) of a score (N,) for truth (N,) bool; empty with a single class."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    if truth.all() or not truth.any():
        return {}
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "auprc": float(average_precision_score(truth, score)),
    }


def predicted_grades(scores: np.ndarray) -> np.ndarray:
    """(N, C) scores to (N,) grades; of equal best scores the lowest grade."""
    return scores.argmax(axis=1)


def kappa_from_confusion(confusion: np.ndarray) -> np.ndarray:
    """Quadratic-weighted kappa of each (..., C, C) matrix of counts; NaN where fewer than two actual classes occur.

    With a single one there is nothing to agree on: it would be 0 with one mistake in a thousand.

    1 - sum(w * observed) / sum(w * expected by the margins), w = (i - j)^2; Cohen 1968, doi:10.1037/h0026256.
    """
    classes = np.arange(confusion.shape[-1])
    weights = (classes[:, None] - classes[None, :]) ** 2
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    observed = (weights * confusion).sum(axis=(-2, -1)) * confusion.sum(axis=(-2, -1))
    expected = (weights * actual[..., :, None] * predicted[..., None, :]).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - observed / np.where((actual > 0).sum(axis=-1) > 1, expected, np.nan)


def weighted_macro_auroc(scores: np.ndarray, grades: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean one-vs-rest AUROC under each of R weightings of the rows; NaN where fewer than two grades have weight.

    Args:
        scores: (N, C), grades: (N,) integers, weights: (R, N) non-negative, e.g. how often a resample holds a row.

    Returns:
        (R,); a grade that a weighting leaves without weight does not count in its mean.
    """
    areas = np.stack([_weighted_auroc(scores[:, grade], grades == grade, weights) for grade in np.unique(grades)])
    defined = np.isfinite(areas)
    with np.errstate(invalid="ignore"):
        return np.where(defined, areas, 0).sum(axis=0) / np.where(defined.any(axis=0), defined.sum(axis=0), np.nan)


def _weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P(positive scores higher) + P(equal) / 2 under each weighting (R, N): (R,)."""
    negatives, positives = np.flatnonzero(~positive), np.flatnonzero(positive)
    order = negatives[np.argsort(scores[negatives], kind="stable")]
    below = np.zeros((len(weights), len(order) + 1))  # weight of the negatives up to each rank
    np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
    lower, not_higher = (np.searchsorted(scores[order], scores[positives], side) for side in ("left", "right"))
    won = (weights[:, positives] * (below[:, lower] + below[:, not_higher])).sum(axis=1) / 2
    pairs = weights[:, positives].sum(axis=1) * below[:, -1]
    return np.asarray(won / np.where(pairs > 0, pairs, np.nan))
