"""Checks across sections: image size against patch size, files and folders that params name, hub revisions."""

import csv
import re
from pathlib import Path

from knee_siglip.core.errors import UsageError
from knee_siglip.core.metrics_file import read_json
from knee_siglip.core.paths import BEST_MODEL, FINAL_MODEL, MANIFEST, PARAMS, SAMPLE
from knee_siglip.params.sections import LARGEST_IMAGE, PATCH_SIZES, SMALL, EvaluateParams, Params, TaskParams
from knee_siglip.task.knee import SUBJECT

LONGEST_LINE = 2**20
"""Characters: a file of another kind may have no line ends."""


def check_image_size(params: Params, source: str) -> None:
    """Raise `UsageError` unless whole patches fill the image, if the patch size is known yet."""
    if patch := vision_patch_size(params.model.vision):
        check_divisible(params.image_size, patch, source)


def vision_patch_size(vision: str) -> int | None:
    """Patch side in pixels of a vision encoder; None for one that is still on the hub."""
    if vision in PATCH_SIZES:
        return PATCH_SIZES[vision]
    patch = read_json(Path(vision) / "config.json").get("patch_size")
    return patch if isinstance(patch, int) and patch > 0 else None


def check_divisible(image_size: int, patch: int, source: str) -> None:
    """Raise `UsageError` unless whole patches fill the image: the encoder would silently drop the rest."""
    if image_size <= 0:
        raise UsageError(f"image_size = {image_size}: must be a positive number of pixels")
    if image_size > LARGEST_IMAGE:
        raise UsageError(f"image_size = {image_size}: must be at most {LARGEST_IMAGE} pixels")
    if image_size % patch:
        low = image_size // patch * patch
        near = [str(size) for size in (low, low + patch) if size > 0]
        raise UsageError(
            f"{source}: image_size = {image_size}: must be a multiple of the vision encoder's patch size {patch}; "
            f"nearest: {' or '.join(near)}"
        )


def label_prompts(task: TaskParams, evaluate: EvaluateParams) -> dict[str, list[str]]:
    """The prompts that stand for each label: the task's, or those that `evaluate` has in their place."""
    return task.label_prompts | evaluate.label_prompts


def check_task(params: Params, source: str) -> None:
    """Raise `UsageError` unless each of the task's labels has prompts, and no other; all that is wrong at once."""
    labels, prompts = list(params.task.labels), label_prompts(params.task, params.evaluate)
    wrong = []
    if missing := [label for label in labels if label not in prompts]:
        wrong.append(
            f"task.label_prompts: no prompts for {', '.join(missing)}; every one of task.labels "
            f"({', '.join(labels)}) needs at least one"
        )
    if unknown := [label for label in prompts if label not in labels]:
        wrong.append(
            f"task.label_prompts (or evaluate.label_prompts): prompts for {', '.join(unknown)}, but task.labels are "
            f"{', '.join(labels) or 'none'}; name the same labels in both"
        )
    if not (params.task.queries or params.infer.queries):
        wrong.append("task.queries: none; give the texts that an image is compared with by default")
    if wrong and params.task.subject != SUBJECT:
        wrong.append(
            f"task.subject = {params.task.subject!r}: nothing of the {SUBJECT} is taken over, so the task must state "
            "its own labels, prompts and queries (docs/another-task.md)"
        )
    if wrong:
        raise UsageError("\n".join(f"{source}: {sentence}" for sentence in wrong))


def check_inputs(params: Params, source: str = str(PARAMS)) -> None:
    """Check files, folders and hub revisions that the params name, before hours are spent.

    Raises:
        UsageError: naming the key, its value and what to do.
    """
    named = {"data.csv": params.data.csv, "data.images": params.data.images, "infer.images": params.infer.images}
    for key, value in named.items():
        # the sample is drawn by a stage of its own
        if not Path(value).is_relative_to(SAMPLE) and not Path(value).exists():
            raise UsageError(
                f"{source}: {key} = {value!r}: does not exist; name your CSV, and the folder of its images"
            )
    if Path(params.data.csv).exists() and not Path(params.data.csv).is_file():
        raise UsageError(f"{source}: data.csv = {params.data.csv!r}: is no file; name a CSV or Parquet file")
    external = params.data.external
    if external is not None and not Path(external).is_file():
        raise UsageError(
            f"{source}: data.external = {external!r}: is no file; name the CSV of a second test set, or for none "
            "data/no_external.csv, which comes with the project"
        )
    if params.task.subject != SUBJECT and Path(params.data.csv).is_relative_to(SAMPLE):
        raise UsageError(
            f"{source}: data.csv = {params.data.csv!r}: the sample shows knees, but task.subject is "
            f"{params.task.subject!r}; name your CSV, and the folder of its images"
        )
    _check_infer(Path(params.infer.csv_path), source)
    _check_columns(params, source)
    _check_init(params.train.init_from, source)
    model = params.model
    check_encoder("vision", model.vision, model.vision_revision)
    check_encoder("text", model.text, model.text_revision)


def _check_infer(table: Path, source: str) -> None:
    """Raise `UsageError` unless `infer.csv_path` exists or is the manifest, which a stage makes."""
    if table != MANIFEST and not table.is_relative_to(SAMPLE) and not table.is_file():
        raise UsageError(
            f"{source}: infer.csv_path = {str(table)!r}: does not exist; name a CSV with img_path, or {MANIFEST}"
        )


def _check_columns(params: Params, source: str) -> None:
    """Raise `UsageError` for a column that `evaluate` names and the CSV, if it is there, has not."""
    columns = _header(Path(params.data.csv))
    if columns is None:
        return
    grade = params.task.label_column
    known = {*columns, "side", "view", grade, "patient_id"}
    named = {f"evaluate.subgroups names {name}": name for name in params.evaluate.subgroup_columns(grade)}
    findings = params.task.findings if params.evaluate.findings is None else params.evaluate.findings
    named |= {
        f"task.findings.{name}.column names {item.column}": item.column
        for name, item in findings.items()
        if item.column
    }
    for what, column in named.items():
        if column not in known:
            raise UsageError(f"{source}: {what}, but {params.data.csv} has no such column; it has {', '.join(columns)}")


def _header(path: Path) -> list[str] | None:
    """Columns of a CSV; None for a file that is not there yet, or that validation has to judge."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            columns = [name.strip() for name in next(csv.reader(iter(lambda: file.readline(LONGEST_LINE), "")), [])]
    except (OSError, ValueError, csv.Error):
        return None
    return columns if "img_path" in columns else None


def _check_init(checkpoint: str | None, source: str) -> None:
    """Raise `UsageError` unless `train.init_from` is a file that is still there when training starts."""
    if checkpoint is None:
        return
    if Path(checkpoint).resolve() in (BEST_MODEL.resolve(), FINAL_MODEL.resolve()):
        raise UsageError(
            f"{source}: train.init_from = {checkpoint!r}: training replaces this file; copy it first, for instance to "
            "start/224.pt, and name the copy"
        )
    if not Path(checkpoint).is_file():
        raise UsageError(f"{source}: train.init_from = {checkpoint!r}: does not exist; name a checkpoint, or null")


def check_encoder(tower: str, source: str, revision: str) -> None:
    """Raise `UsageError` where `model.<tower>` names nothing, or a hub repository without a whole commit hash."""
    if source == SMALL or Path(source).is_dir():
        return
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise UsageError(
            f"model.{tower} = {source!r}: is no folder here; give `{SMALL}`, an existing folder in Hugging Face format "
            "or a hub name like owner/repository"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UsageError(
            f"model.{tower}_revision = {revision!r}: {source} is loaded at one pinned commit, so its 40-digit hash is "
            f"needed; copy it from https://huggingface.co/{source}/commits/main (model page, Files and versions, "
            "commit history)"
        )
