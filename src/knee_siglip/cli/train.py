"""`knee-siglip train`: the same steps as the DVC pipeline, outside it and into one folder.

Caches stay in the store (`paths.store_root()`), so that a second run on the same images decodes nothing.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knee_siglip.core import paths
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.core.files import is_first_process, sole_writer
from knee_siglip.core.running import run_stage
from knee_siglip.params.checks import check_divisible, check_inputs, vision_patch_size
from knee_siglip.params.files import load_params, parse_params, save_params
from knee_siglip.params.sections import Params
from knee_siglip.tracking.privacy import without_password
from knee_siglip.training.launch import LAUNCHER, hand_over, is_launched

if TYPE_CHECKING:
    import pandas as pd

BEST_MODEL, FINAL_MODEL = paths.BEST_MODEL.name, paths.FINAL_MODEL.name
MANIFEST, BACKBONES = paths.MANIFEST.name, paths.BACKBONES.name
CACHE_INDEX, CACHE_FACTS = "cache/index.parquet", "cache/cache.json"
REPORT = "reports/train"
WRITTEN_LAST = f"{REPORT}/speed.json"
"""Its presence tells a finished run from one that was killed after its models, before their calibration and report."""

FLAGS: dict[str, tuple[str, ...]] = {
    "data_path": ("data", "csv"),
    "batch_size": ("train", "batch_size"),
    "image_size": ("image_size",),
    "epochs": ("train", "epochs"),
    "steps": ("train", "steps"),
    "learning_rate": ("train", "learning_rate"),
    "weight_decay": ("train", "weight_decay"),
    "warmup_ratio": ("train", "warmup_ratio"),
    "temperature": ("model", "temperature"),
    "max_text_length": ("model", "max_text_length"),
    "gradient_accumulation_steps": ("train", "gradient_accumulation_steps"),
    "mixed_precision": ("train", "mixed_precision"),
    "project_name": ("tracking", "project_name"),
    "experiment_name": ("tracking", "experiment_name"),
    "seed": ("seed",),
    "vision": ("model", "vision"),
    "vision_revision": ("model", "vision_revision"),
    "text": ("model", "text"),
    "text_revision": ("model", "text_revision"),
}
"""Where each flag of `knee-siglip train` lives in params.yaml."""


def params_with_flags(path: Path | None, flags: Mapping[str, Any]) -> Params:
    """Params of a file (none named: ./params.yaml if there is one, else the defaults) with the flags that are not None.

    Raises:
        UsageError: the file or a flag is wrong.
    """
    path = path or (paths.PARAMS if paths.PARAMS.is_file() else None)
    values = (load_params(path) if path else Params()).to_dict()
    if flags.get("epochs") or flags.get("steps"):  # a flag beats the file's length, whichever of the two that is
        values["train"] |= {"epochs": None, "steps": "auto"}
    for flag, value in flags.items():
        if value is not None:
            *sections, key = FLAGS[flag]
            place = values
            for section in sections:
                place = place[section]
            place[key] = value
    # data.images is what DVC watches. Outside DVC nothing is watched, so no image is outside of it.
    values["data"]["images"] = Path(values["data"]["csv"]).absolute().anchor
    return parse_params(values, source="params and flags")


def default_output_dir(params: Params) -> Path:
    """`runs/<experiment_name>`, or `runs/train`.

    Raises:
        UsageError: the name is not that of one folder.
    """
    name = params.tracking.experiment_name or "train"
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(f"experiment_name = {name!r} cannot name a folder; give --output_dir")
    return Path("runs") / name


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Refuse a folder whose files belong to DVC, or that holds a finished run.

    Raises:
        UsageError: saying which, and what to do.
    """
    outs = (paths.SAMPLE, paths.BEST_MODEL, paths.TRAIN_REPORT)
    inside = (
        any(folder.resolve().is_relative_to(out.parent.resolve()) for out in outs) or folder.resolve() == Path.cwd()
    )
    if inside and Path("dvc.yaml").is_file():
        raise UsageError(
            f"--output_dir {folder} belongs to this folder's DVC pipeline; name another, such as runs/first"
        )
    if (folder / WRITTEN_LAST).exists() and not overwrite:
        raise UsageError(
            f"{folder} holds a finished run; name another --output_dir or experiment_name, or add --overwrite"
        )


def train_outside_dvc(params: Params, folder: Path, device: str = "auto") -> None:
    """Validate, preprocess, bring the backbones and train; everything but the caches goes into `folder`.

    Writes params.yaml, best_model.pt, final_model.pt, manifest.parquet, cache/, backbones/ and
    reports/{validation,train}/. With $KNEE_SIGLIP_LAUNCHER the training itself runs on several devices.

    Raises:
        UserError: of the step that failed, as in the pipeline.
    """
    if is_launched():
        raise UsageError(
            f"start knee-siglip train by itself and name the launcher in the environment: {LAUNCHER}='torchrun "
            "--nproc-per-node 2' knee-siglip train ...; so the images are prepared once, not once per process"
        )
    prepare(params, folder)
    hand_over(["-m", "knee_siglip.cli.train", str(folder), device])
    train_in(folder, device)


def prepare(params: Params, folder: Path) -> None:
    """Everything before the training."""
    from knee_siglip.encoders.backbones import write_backbones
    from knee_siglip.imaging.fit.transform import Transform
    from knee_siglip.store.pixels import build_cache

    check_inputs(params, "params and flags")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WRITTEN_LAST).unlink(missing_ok=True)  # a run that is overwritten is finished no more
    save_params(_without_secret(params), folder / paths.PARAMS.name)
    backbones = folder / BACKBONES
    # Before the images are decoded: an encoder that cannot be had shall not cost an hour first.
    write_backbones(params.model, backbones)
    if patch := vision_patch_size(str(backbones / "vision")):
        check_divisible(params.image_size, patch, "params and flags")
    manifest = _validate(params, folder)
    transform = Transform(params.image_size, **params.preprocess.model_dump())
    build_cache(manifest, transform, folder / CACHE_INDEX, folder / CACHE_FACTS)


def _without_secret(params: Params) -> Params:
    """Params that may lie in a file: a tracking URI with a password goes to the training by the environment."""
    uri = params.tracking.mlflow
    if without_password(uri) == uri:
        return params
    os.environ["MLFLOW_TRACKING_URI"] = uri
    return params.model_copy(update={"tracking": params.tracking.model_copy(update={"mlflow": "auto"})})


def _validate(params: Params, folder: Path) -> "pd.DataFrame":
    """Check the data and draw the page of what was found; the manifest where there are no errors."""
    from knee_siglip.params.tasks import task_of
    from knee_siglip.report.validation.page import write_validation_page
    from knee_siglip.validation.validate import validate

    report, csv, task = folder / "reports/validation", Path(params.data.csv), task_of(params)
    try:
        manifest = validate(params, folder / MANIFEST, report, folder / BACKBONES / "text")
    except UserError as error:
        if page := write_validation_page(report, csv, task):
            raise UserError(f"{error}, with pictures in {page}") from None
        raise
    write_validation_page(report, csv, task)
    return manifest


def train_in(folder: Path, device: str) -> None:
    """The training on what `prepare` left in a folder."""
    from knee_siglip.training.run import TrainFiles, train

    files = TrainFiles(
        manifest=folder / MANIFEST,
        cache_facts=folder / CACHE_FACTS,
        backbones=folder / BACKBONES,
        best_model=folder / BEST_MODEL,
        final_model=folder / FINAL_MODEL,
        report=folder / REPORT,
    )
    train(load_params(folder / paths.PARAMS.name), files, device)
    if is_first_process():
        print(f"{BEST_MODEL}, {FINAL_MODEL} and reports/ are in {folder}")


def main() -> None:
    """`-m knee_siglip.cli.train FOLDER DEVICE`, which the launcher starts once per device."""
    folder = Path(sys.argv[1])
    with sole_writer(folder):  # its launcher's start has freed the command's
        train_in(folder, sys.argv[2])


if __name__ == "__main__":
    run_stage(main)
