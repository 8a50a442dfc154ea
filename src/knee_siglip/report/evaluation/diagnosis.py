"""What went wrong in a model that learned little, the likely cause, and what to try.

From three measurements: the signs that training noticed, how many grades are predicted, and what a linear probe reads
from the image embeddings beside what the prompts read from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from knee_siglip.report.evaluation.results import EvaluationResults, SplitResults
from knee_siglip.report.evaluation.wording import at, is_yes_no, labelled, noun
from knee_siglip.report.html.numbers import plural

PROBE = "linear_probe.share_100.quadratic_weighted_kappa"

READABLE = 0.2
"""Kappa from which the grade can be read at all ("fair", Landis and Koch 1977)."""

BEHIND = 0.2
"""Kappa by which the prompts must be behind the probe before the text side is blamed."""


@dataclass(frozen=True)
class Remark:
    """What was noticed, in a sentence, and why probably and what to try. tone: a class of the style sheet."""

    tone: str
    sentence: str
    advice: str


def remarks(results: EvaluationResults) -> list[Remark]:
    """The gravest first; empty for a training and a grading without signs of trouble."""
    signs = [Remark(sign["tone"], sign["sentence"], sign["advice"]) for sign in results.training.get("signs", ())]
    found = [*_grading(results), *signs]
    return sorted(found, key=lambda remark: remark.tone != "error")


def _grading(results: EvaluationResults) -> Iterator[Remark]:
    split = results.shown
    predicted = {guess for _, guess in results.confusion}
    kappa, probe = split.grading("quadratic_weighted_kappa"), at(split.metrics, PROBE)
    if len(predicted) == 1 and len({actual for actual, _ in results.confusion}) > 1:
        label, between = split.task.labels.values[predicted.pop()], ":" if is_yes_no(split.task) else ""
        images = plural(len(results.confusion), f"{labelled(split.task)} image")
        sentence = f"All {images} of the {split.name} split get {split.task.label_title}{between} {label}."
        yield Remark("error", sentence, _cause(split, kappa, probe))
    elif kappa is not None and probe is not None and (probe - kappa >= BEHIND or max(kappa, probe) < READABLE):
        sentence = f"The prompts read the {noun(split.task)} from the images at kappa {kappa:.2f}."
        yield Remark("error" if kappa < READABLE else "warning", sentence, _cause(split, kappa, probe))


def _cause(split: SplitResults, kappa: float | None, probe: float | None) -> str:
    """The likely cause, and what to try."""
    if probe is None:
        return (
            f"Whether the image embeddings hold the {noun(split.task)} could not be measured: a linear probe needs "
            f"{noun(split.task)}s in train and val. Try twice the train.steps."
        )
    if probe < READABLE:
        return (
            f"A linear probe reads it from the image embeddings at kappa {probe:.2f} only: the image encoder has not "
            "learned it. Try twice the train.steps, a larger train.vision_learning_rate_scale, or more images, and "
            f"look at the images and {noun(split.task)}s in reports/validation/index.html."
        )
    if probe - (kappa or 0.0) < BEHIND:
        return f"A linear probe reads it from the image embeddings at kappa {probe:.2f}. Try twice the train.steps."
    learned = (
        f"A linear probe reads it from the image embeddings at kappa {probe:.2f}: the image encoder has learned it"
    )
    if _matches_texts(split):
        return (
            f"{learned}, and impressions are matched better than by chance, so the prompts probably differ from the "
            "impressions. Write evaluate.kl_prompts (label_prompts) in the impressions' own words."
        )
    return f"{learned}, the text side has not. Try twice the train.steps, and look at the texts in the validation page."


def _matches_texts(split: SplitResults) -> bool:
    """Whether the lower bound of the contrastive accuracy is above that of a model without information."""
    name = "contrastive_accuracy"
    interval, chance = split.interval(name), at(split.metrics, f"baseline.constant.{name}")
    return interval is not None and chance is not None and interval[0] > chance
