"""How far the zero-shot grades hang on single prompts."""

from knee_siglip.evaluation.embedded import EmbeddedSplit
from knee_siglip.metrics.grading import agreement_metrics, predicted_grades
from knee_siglip.metrics.matching.similarity import cosine_scores

SHOWN = ("accuracy", "quadratic_weighted_kappa")


def prompts_table(split: EmbeddedSplit) -> list[dict[str, str | int | float]]:
    """One row per prompt of a grade: the figures when it stands alone for its grade, the others as they are.

    `<figure>_difference`: to the figure of all ensembles. What is undefined is left out; no rows without grades.
    """
    scores, images = split.grade_scores[split.graded], split.image_embeds[split.graded]
    if not len(split.grades):
        return []
    task, classes = split.task, len(split.task.labels)
    ensembles = agreement_metrics(split.grades, predicted_grades(scores), classes)
    table: list[dict[str, str | int | float]] = []
    for grade, embeds in enumerate(split.prompts.grades):
        alone = cosine_scores(images, embeds)
        for number, prompt in enumerate(task.label_prompts[grade]):
            replaced = scores.copy()
            replaced[:, grade] = alone[:, number]
            figures = agreement_metrics(split.grades, predicted_grades(replaced), classes)
            table.append({"grade": task.labels.cell(grade), "prompt": prompt, **_compared(figures, ensembles)})
    return table


def _compared(figures: dict[str, float], ensembles: dict[str, float]) -> dict[str, float]:
    shown = {name: figures[name] for name in SHOWN if name in figures}
    differences = {f"{name}_difference": value - ensembles[name] for name, value in shown.items() if name in ensembles}
    return shown | differences
