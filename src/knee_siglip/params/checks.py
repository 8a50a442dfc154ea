"""Checks across sections: image size against patch size, files and folders that params name, hub revisions."""

import json
import re
from pathlib import Path

from knee_siglip.core.errors import UsageError
from knee_siglip.core.paths import BEST_MODEL, FINAL_MODEL, PARAMS, SAMPLE
from knee_siglip.params.sections import LARGEST_IMAGE, PATCH_SIZES, SMALL, Params


def check_image_size(params: Params, source: str) -> None:
    """Raise `UsageError` unless whole patches fill the image, if the patch size is known yet."""
    if patch := vision_patch_size(params.model.vision):
        check_divisible(params.image_size, patch, source)


def vision_patch_size(vision: str) -> int | None:
    """Patch side in pixels of a vision encoder; None for one that is still on the hub."""
    if vision in PATCH_SIZES:
        return PATCH_SIZES[vision]
    config = Path(vision) / "config.json"
    return json.loads(config.read_text()).get("patch_size") if config.is_file() else None


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


def check_task(params: Params, source: str) -> None:
    """Raise `UsageError` unless the sections `task` and `evaluate` have the same labels."""
    labels, prompts = list(params.task.labels), params.evaluate.label_prompts
    if missing := [label for label in labels if label not in prompts]:
        raise UsageError(
            f"{source}: evaluate.label_prompts: no prompts for {', '.join(missing)}; every one of task.labels "
            f"({', '.join(labels)}) needs at least one"
        )
    if unknown := [label for label in prompts if label not in labels]:
        raise UsageError(
            f"{source}: evaluate.label_prompts: prompts for {', '.join(unknown)}, but task.labels are "
            f"{', '.join(labels) or 'none'}"
        )
    if not (params.task.queries or params.infer.queries):
        raise UsageError(f"{source}: task.queries: none; give the texts that an image is compared with by default")


def check_inputs(params: Params, source: str = str(PARAMS)) -> None:
    """Check files, folders and hub revisions that the params name, before hours are spent.

    Raises:
        UsageError: naming the key, its value and what to do.
    """
    for key, value in (("data.csv", params.data.csv), ("data.images", params.data.images)):
        # the sample is drawn by a stage of its own
        if not Path(value).is_relative_to(SAMPLE) and not Path(value).exists():
            raise UsageError(
                f"{source}: {key} = {value!r}: does not exist; name your CSV, and the folder of its images"
            )
    _check_init(params.train.init_from, source)
    model = params.model
    check_encoder("vision", model.vision, model.vision_revision)
    check_encoder("text", model.text, model.text_revision)


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
