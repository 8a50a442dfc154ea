"""Titles and explanations of metrics, and values as the page writes them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlencode

from knee_siglip.metrics.units import FEWEST_UNITS
from knee_siglip.report.html.numbers import NOTHING, number, readable
from knee_siglip.task.task import Task


@dataclass(frozen=True)
class Metric:
    """title: the standard term; meaning: a sentence in plain words.

    kind: `share` is shown in per cent, `score` has a scale up to 1, `number` is any other. ends: of the scale.
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

    def with_interval(
        self, value: float | None, low: float | None, high: float | None, units: int | None = None
    ) -> str:
        """`0.981 (0.962–0.993)`; the figure alone where there is no interval, or why. units: of `too_few_units`."""
        between = self.between(low, high) or (too_few_units(units) if units is not None else "")
        return f"{self.shown(value)} ({between})" if between and value is not None else self.shown(value)

    def of_figures(self, figures: Mapping[str, Any], name: str) -> str:
        """The same of `name`, `name_ci_low` ... among figures."""
        return self.with_interval(*(figures.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high", "_ci_units")))

    def change(self, difference: float | None) -> str:
        """A difference of two figures, with its sign and without the unit; empty where there is none."""
        if difference is None:
            return ""
        return f"{100 * difference:+.1f}" if self.kind == "share" else f"{difference:+.3f}"

    def _bare(self, value: float) -> str:
        return self.shown(value).removesuffix(" %")


MATCHING: dict[str, Metric] = {
    "contrastive_accuracy": Metric(
        "Contrastive accuracy",
        "How often the right partner comes first: of {size} texts for an image, of {size} images for a text.",
    ),
    "retrieval.image_to_text.recall_at_1": Metric(
        "Recall@1, image to text",
        "How often a right text comes first among all texts of the split.",
    ),
    "retrieval.text_to_image.recall_at_1": Metric(
        "Recall@1, text to image",
        "How often a right image comes first among all images of the split.",
    ),
}
GRADING: dict[str, Metric] = {
    "accuracy": Metric(
        "Grade accuracy",
        "Zero-shot: the {title} whose prompts are most similar to the image.",
    ),
    "balanced_accuracy": Metric(
        "Balanced grade accuracy",
        "Mean recall of the grades, each counting equally; {chance:.0f} % is chance.",
    ),
    "quadratic_weighted_kappa": Metric(
        "Quadratic weighted kappa",
        "Agreement on the grade: 1 is perfect, 0 is chance; being two grades off counts four times as much as one.",
        kind="score",
    ),
    "macro_auroc": Metric(
        "Macro AUROC of the grades",
        "Each grade against the others, mean over the grades: 0.5 is chance, 1 is perfect.",
        kind="score",
    ),
}
YES_NO: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "Zero-shot: the label whose prompts are most similar to the image."),
    "balanced_accuracy": Metric("Balanced accuracy", "Mean of sensitivity and specificity; 50 % is chance."),
    "quadratic_weighted_kappa": Metric(
        "Kappa (Cohen's)", "Agreement on the label beyond chance: 1 is perfect, 0 is chance.", kind="score"
    ),
    "macro_auroc": Metric(
        "Area under the ROC curve (AUROC)",
        "How often, of two images with different labels, the right one has the higher score: 0.5 is chance.",
        kind="score",
    ),
}
"""The same of two labels, which have no order: weighted and unweighted kappa are equal."""


def is_yes_no(task: Task) -> bool:
    """Whether there are two labels."""
    return len(task.labels) == 2


def noun(task: Task) -> str:
    """What the task's labels are called."""
    return "label" if is_yes_no(task) else "grade"


def labelled(task: Task) -> str:
    """What an image with a label is."""
    return "labelled" if is_yes_no(task) else "graded"


def said(task: Task, label: object) -> str:
    """`grade 2`, or `fracture: yes`."""
    return f"{task.label_short}: {label}" if is_yes_no(task) else f"grade {label}"


def positive_name(task: Task) -> str:
    """`osteoarthritis (grade 2 and above)`, or `fracture (yes)`."""
    assert task.positive is not None
    lowest, name = task.positive.lowest, task.labels.values[task.positive.lowest]
    more = " and above" if lowest + 1 < len(task.labels) else ""
    return f"{task.positive.title} ({name if is_yes_no(task) else f'grade {name}{more}'})"


def capital(words: str) -> str:
    """With a capital at the beginning."""
    return words[:1].upper() + words[1:]


def headline_words(task: Task) -> dict[str, Metric]:
    """The headline metrics by dotted name, in the order of the page. Intervals exist for these alone."""
    if not task.labels:
        return MATCHING
    words = {"title": task.label_title, "chance": 100 / len(task.labels)}
    return MATCHING | {
        f"{task.labels.metrics}.{name}": replace(metric, meaning=metric.meaning.format(**words))
        for name, metric in (YES_NO if is_yes_no(task) else GRADING).items()
    }


DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}

RETRIEVAL_FIGURES = {
    "recall_at_1": Metric("Recall@1 (right one first)"),
    "recall_at_5": Metric("Recall@5 (right one among the first 5)"),
    "recall_at_10": Metric("Recall@10 (right one among the first 10)"),
    "median_rank": Metric("Median rank of the right one", kind="number"),
    "mrr": Metric("Mean reciprocal rank", kind="score"),
    "map": Metric("Mean average precision", kind="score"),
}

GRADE_FIGURES = {
    "adjacent_accuracy": Metric("Adjacent accuracy (at most one grade off)"),
    "mae": Metric("Mean absolute error in grades", kind="number"),
    "macro_auprc": Metric("Macro AUPRC of the grades", kind="score"),
}


def grade_names(task: Task) -> list[str]:
    """`2 mild` of each label, or `no (no fracture)`; a label that is its own word stands alone."""
    pairs = zip(task.labels.values, task.label_words, strict=True)
    shown = "{} {}" if task.labels.are_numbers else "{} ({})"
    return [label if word == label else shown.format(label, word) for label, word in pairs]


def cases_link(**filters: str | int) -> str:
    """Where the case browser shows the images that pass these filters, or the one `case` (its row in the split)."""
    return f"cases.html#{urlencode(filters)}"


CHANCE, CEILING = "constant", "perfect reader"

BASELINES = {
    CHANCE: "chance",
    "text_prior": "most frequent text or label",
    "pixel_neighbour": "nearest neighbour by pixels",
    "untrained": "before training",
}
"""What a model has to beat."""

BASELINE_MEANINGS = {
    CHANCE: "the same answer for every image",
    "text_prior": "the most frequent text and label of the training data, without looking at the image",
    "pixel_neighbour": "the text and label of the training image with the most similar grey values",
    "untrained": "the same model without this training",
}

CHANCE_LEVELS = {"quadratic_weighted_kappa": 0.0, "macro_auroc": 0.5}
"""Grading metrics at chance, known without measuring."""

METHODS = {
    "raw": "patch similarity",
    "gradient": "attention relevance",
    "occlusion": "occlusion",
    "centre_prior": "image centre",
}
"""Grounding methods; the last one is the baseline."""

NAMES = {"jpeg": "JPEG compression", "none": "undisturbed"}
"""Disturbances and findings whose short name is not a word."""


def named(name: str) -> str:
    """A short name as words, with a capital."""
    return capital(NAMES.get(name) or METHODS.get(name) or readable(name))


def group_name(column: object, group: object) -> str:
    """`view: lateral`."""
    return f"{readable(str(column))}: {number(group)}"


def percentage(value: float | None) -> str:
    """With one decimal, because differences of a per cent matter here."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def of_hundred(value: float) -> str:
    """`88 of 100`."""
    return f"{100 * value:.0f} of 100"


def too_few_units(units: int | None) -> str:
    """What stands in place of an interval; units: how many independent ones there are, where that is the reason."""
    return NOTHING if units is None else f"too few units ({units} of {FEWEST_UNITS})"


def at(metrics: Mapping[str, Any], dotted: str) -> Any:
    """Value of a dotted name in a nested dict, or None."""
    value: Any = metrics
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
