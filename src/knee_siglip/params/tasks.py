"""The task that params describe."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from knee_siglip.core.errors import UserError
from knee_siglip.params.checks import label_prompts
from knee_siglip.params.sections import EvaluateParams, Params, TaskParams
from knee_siglip.task.task import Finding, Labels, Positive, Task


def task_of(params: Params) -> Task:
    """The task of the section `task`, with what `evaluate` replaces of it."""
    return _task(params.task, params.evaluate)


def saved_task(saved: Mapping[str, Any]) -> Task:
    """The task of a checkpoint's params; a checkpoint from before tasks existed is about the knee.

    Raises:
        UserError: the params describe no task.
    """
    needed = ("label_prompts", "kl_prompts", "findings")  # others may be of another version
    evaluate = saved.get("evaluate", {})
    if isinstance(evaluate, dict):
        evaluate = {name: value for name, value in evaluate.items() if name in needed}
    try:
        known = EvaluateParams.model_validate(evaluate)
        task = TaskParams.model_validate(saved.get("task", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"the checkpoint's own params describe no task: {where}: {first['msg']}") from None
    if odd := sorted(task.labels.keys() ^ label_prompts(task, known).keys()):
        raise UserError(
            f"the checkpoint's own params describe no task: label {odd[0]} is in only one of task.labels and "
            "label_prompts"
        )
    return _task(task, known)


def _task(section: TaskParams, evaluate: EvaluateParams) -> Task:
    findings = section.findings if evaluate.findings is None else evaluate.findings
    prompts = label_prompts(section, evaluate)
    labels = Labels(section.label_column, tuple(section.labels))
    asked = section.positive
    return Task(
        subject=section.subject,
        labels=labels,
        label_title=section.label_title,
        label_short=section.label_short,
        label_words=tuple(section.labels.values()),
        label_prompts=tuple(prompts[label] for label in labels.values),
        label_patterns=section.label_patterns,
        positive=Positive(asked.name, asked.title, labels.position(asked.lowest)) if asked else None,
        findings={name: Finding(**finding.model_dump()) for name, finding in findings.items()},
        side_words=section.side_words,
        normal=section.normal,
        queries=section.queries,
    )
