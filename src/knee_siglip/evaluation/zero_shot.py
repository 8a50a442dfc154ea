"""How far the zero-shot grades hang on single prompts."""

from typing import get_args

from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.metrics.grading import agreement_metrics, predicted_grades
from knee_siglip.metrics.matching.similarity import cosine_scores
from knee_siglip.params.sections import Grade

SHOWN = ("accuracy", "quadratic_weighted_kappa")


def prompts_table(split: EmbeddedSplit, data: EmbeddedData) -> list[dict[str, str | int | float]]:
    """One row per Kellgren-Lawrence prompt: the figures when it stands alone for its grade, the others as they are.

    `<figure>_difference`: to the figure of all ensembles. What is undefined is left out; no rows without grades.
    """
    scores, images = split.grade_scores[split.graded], split.image_embeds[split.graded]
    ensembles = agreement_metrics(split.grades, predicted_grades(scores))
    if not ensembles:
        return []
    table: list[dict[str, str | int | float]] = []
    for grade, embeds in enumerate(split.prompts.grades):
        alone = cosine_scores(images, embeds)
        for number, prompt in enumerate(data.params.kl_prompts[get_args(Grade)[grade]]):
            replaced = scores.copy()
            replaced[:, grade] = alone[:, number]
            figures = agreement_metrics(split.grades, predicted_grades(replaced))
            table.append({"grade": grade, "prompt": prompt, **_compared(figures, ensembles)})
    return table


def _compared(figures: dict[str, float], ensembles: dict[str, float]) -> dict[str, float]:
    shown = {name: figures[name] for name in SHOWN if name in figures}
    differences = {f"{name}_difference": value - ensembles[name] for name, value in shown.items() if name in ensembles}
    return shown | differences
