"""Words for what the measurements call by short names, and figures as the page writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from knee_siglip.report.html.numbers import NOTHING, number, readable
from knee_siglip.task.task import Task


@dataclass(frozen=True)
class Metric:
    """title: a few words for it; meaning: a sentence.

    kind: `share` is read in per cent, `score` lies on a scale up to 1, `number` is any other. ends: of its scale.
    """

    title: str
    meaning: str = ""
    kind: Literal["share", "score", "number"] = "share"
    ends: tuple[float, float] = (0.0, 1.0)

    @property
    def phrase(self) -> str:
        """The title inside a sentence."""
        return self.title[0].lower() + self.title[1:]

    def shown(self, value: float | None) -> str:
        """The figure alone."""
        if value is None or self.kind == "number":
            return number(value)
        return percentage(value) if self.kind == "share" else f"{value:.3f}"

    def between(self, low: float | None, high: float | None) -> str:
        """An interval, without the unit, which stands at the figure; empty where there is none."""
        return "" if low is None or high is None else f"{self._bare(low)}–{self._bare(high)}"

    def change(self, difference: float | None) -> str:
        """A difference of two figures, with its sign and without the unit; empty where there is none."""
        if difference is None:
            return ""
        return f"{100 * difference:+.1f}" if self.kind == "share" else f"{difference:+.3f}"

    def _bare(self, value: float) -> str:
        return self.shown(value).removesuffix(" %")


MATCHING: dict[str, Metric] = {
    "contrastive_accuracy": Metric(
        "Right partner found in a small group",
        "An image among {size} texts, or a text among {size} images: how often the right one comes first.",
    ),
    "retrieval.image_to_text.recall_at_1": Metric(
        "Right text first, for an image",
        "The image is compared with every text of the split: how often a right one comes first.",
    ),
    "retrieval.text_to_image.recall_at_1": Metric(
        "Right image first, for a text",
        "The text is compared with every image of the split: how often a right one comes first.",
    ),
}
GRADING: dict[str, Metric] = {
    "accuracy": Metric(
        "Grade exactly right",
        "The {title} whose descriptions are most like the image, without a grade as a number in its training.",
    ),
    "balanced_accuracy": Metric(
        "Grade exactly right, every grade counting alike",
        "Mean over the grades, however rare they are; {chance:.0f} % is chance.",
    ),
    "quadratic_weighted_kappa": Metric(
        "Agreement on the grade (weighted kappa)",
        "1 is full agreement, 0 is that of chance; an error of two grades weighs four times one of a single grade.",
        kind="score",
    ),
    "macro_auroc": Metric(
        "Telling one grade from the others (AUROC)",
        "0.5 is chance, 1 is never mistaken; mean over the grades.",
        kind="score",
    ),
}


def headline_words(task: Task) -> dict[str, Metric]:
    """The headline metrics by dotted name, in the order of the page. Intervals exist for these alone."""
    labels = task.labels
    if not labels:
        return MATCHING
    chance = 100 / len(labels)
    return MATCHING | {
        f"{labels.metrics}.{name}": replace(
            metric, meaning=metric.meaning.format(title=task.label_title, chance=chance)
        )
        for name, metric in GRADING.items()
    }


DIRECTIONS = {"image_to_text": "text for an image", "text_to_image": "image for a text"}

RETRIEVAL_FIGURES = {
    "recall_at_1": Metric("Right one first"),
    "recall_at_5": Metric("Right one among the first 5"),
    "recall_at_10": Metric("Right one among the first 10"),
    "median_rank": Metric("Median place of the right one", kind="number"),
    "mrr": Metric("Mean reciprocal rank", kind="score"),
    "map": Metric("Mean average precision", kind="score"),
}

GRADE_FIGURES = {
    "adjacent_accuracy": Metric("At most one grade off"),
    "mae": Metric("Mean error in grades", kind="number"),
    "macro_auprc": Metric("Area under precision and recall (AUPRC), mean over the grades", kind="score"),
}


def grade_figures(task: Task) -> dict[str, Metric]:
    """What is known of the grade beside the headline."""
    asked = task.positive
    if asked is None:
        return GRADE_FIGURES
    title, lowest = asked.title.capitalize(), task.labels.values[asked.lowest]
    return GRADE_FIGURES | {
        f"{asked.name}.accuracy": Metric(f"{title}, yes or no (grade {lowest} and above): right"),
        f"{asked.name}.sensitivity": Metric(f"{title}: sensitivity"),
        f"{asked.name}.specificity": Metric(f"{title}: specificity"),
    }


def grade_names(task: Task) -> list[str]:
    """`2 mild` of each label; a label that is its own word stands alone."""
    pairs = zip(task.labels.values, task.label_words, strict=True)
    return [label if word == label else f"{label} {word}" for label, word in pairs]


CHANCE, CEILING = "constant", "perfect reader"

BASELINES = {
    CHANCE: "chance",
    "text_prior": "commonest text or grade",
    "pixel_neighbour": "most alike pixels",
    "untrained": "untrained encoders",
}
"""What a model has to beat."""

BASELINE_MEANINGS = {
    CHANCE: "the same answer for every image: what ties and luck alone give",
    "text_prior": "no look at the image: the texts and grades that are most frequent in training",
    "pixel_neighbour": "the text and grade of the training image whose grey values are most alike",
    "untrained": "the same encoders before this training",
}

CHANCE_LEVELS = {"quadratic_weighted_kappa": 0.0, "macro_auroc": 0.5}
"""Of the grading, chance by definition, where it was not measured."""

METHODS = {
    "raw": "likeness of single patches to the text",
    "gradient": "attention, weighted by gradients",
    "occlusion": "hiding parts of the image",
    "centre_prior": "always the middle of the image",
}
"""Of grounding, the last one being what they must beat."""

NAMES = {"jpeg": "JPEG compression", "none": "undisturbed"}
"""Of disturbances and findings, where the short name is no word."""


def named(name: str) -> str:
    """A short name as words, with a capital."""
    words = NAMES.get(name) or METHODS.get(name) or readable(name)
    return words[:1].upper() + words[1:]


def group_name(column: object, group: object) -> str:
    """`view: lateral`."""
    return f"{readable(str(column))}: {number(group)}"


def percentage(value: float | None) -> str:
    """With a decimal, since differences of a per cent count here."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def of_hundred(value: float) -> str:
    """`88 of 100`."""
    return f"{100 * value:.0f} of 100"


def plural(count: float, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def at(metrics: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted name in a nested dict, or None."""
    value: Any = metrics
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
