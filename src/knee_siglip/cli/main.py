"""The `knee-siglip` command.

    knee-siglip infer --model_path models/best_model.pt --image_path knee.png
    knee-siglip infer --model_path models/best_model.pt --csv_path knees.csv --output_path results.csv
    knee-siglip train --data_path train.csv --image_size 448
    knee-siglip import /data/NIH chests.csv --split
    knee-siglip split all.csv train.csv
    knee-siglip compare main my-experiment
    knee-siglip compare --a s0 s1 s2 --b t0 t1 t2
    knee-siglip release my-experiment
    knee-siglip store show
    knee-siglip sync
    knee-siglip doctor

Exit codes: 0 done, 1 failed, 2 wrong usage or params, 3 done with some rows failed.
"""

import io
import json
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from knee_siglip import __version__
from knee_siglip.cli.compare.command import ListedRuns, compare
from knee_siglip.cli.heatmap import draw_map
from knee_siglip.cli.import_data import import_data
from knee_siglip.cli.release.command import release
from knee_siglip.cli.split.command import split
from knee_siglip.cli.store import commands as store_commands
from knee_siglip.cli.sync import sync
from knee_siglip.core.cells import echo
from knee_siglip.core.errors import EXIT_FAILED, EXIT_ROWS_FAILED, UsageError
from knee_siglip.core.files import is_first_process, readable_name, sole_writer
from knee_siglip.core.running import ctrl_c, run_stage

# torch, transformers and pandas are imported inside the commands: `--help` must not wait for them.
if TYPE_CHECKING:
    from knee_siglip.inference.batch import Summary
    from knee_siglip.inference.outputs import Outputs
    from knee_siglip.inference.predictor import Prediction, Predictor

INTERRUPTED = 128 + signal.SIGINT
BATCH_SIZE = 64
RESULTS = Path("results.csv")
RESULT_SUFFIXES = (".csv", ".parquet")
STATE_STYLES = {"ready": "green", "note": "yellow", "broken": "bold red"}


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="import")(import_data)
app.command()(split)
app.command(cls=ListedRuns)(compare)
app.command()(release)
app.command()(sync)
app.command(name="map")(draw_map)
app.add_typer(store_commands.app, name="store")


def main() -> None:
    """Entry point of the console script: a user's mistake is one sentence, not a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name of undecodable bytes, as stderr shows it
    run_stage(_run_app)


def _run_app() -> None:
    """The app, whose Ctrl-C is a sentence: typer's own is silence and an exit code."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            raise ctrl_c() from None
        raise


def _show_version(wanted: bool) -> None:
    if wanted:
        echo(f"knee-siglip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Match knee radiographs with radiology impressions."""


@app.command()
def infer(
    model_path: Annotated[Path, typer.Option("--model_path", help="A checkpoint, such as models/best_model.pt.")],
    image_path: Annotated[
        list[Path] | None,
        typer.Option("--image_path", help="A radiograph: rank the queries. Repeated: the images of one study."),
    ] = None,
    csv_path: Annotated[
        Path | None,
        typer.Option("--csv_path", help="A batch: CSV or Parquet with img_path (from its folder), or a manifest."),
    ] = None,
    folder_path: Annotated[
        Path | None,
        typer.Option("--folder_path", help="A batch: all files below a folder, such as DICOMs without suffix."),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", help="A text to compare with, repeatable. None: those of the task.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image_size", help="A multiple of the vision patch. None: the checkpoint's.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch_size", min=1, help=f"Images at a time. None: {BATCH_SIZE}.")
    ] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output_path", help=f"The batch's results, .csv or .parquet. None: {RESULTS}.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="Of the image encoder: fp16, bf16, float32, or auto: fp16 on a GPU.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of a finished batch.")] = False,
) -> None:
    """Rank queries for one image or study, or run a batch (exit code 3 if some of its images failed).

    An interrupted batch goes on where it was. Several processes share one: torchrun --no-python knee-siglip infer ...
    """
    if sum(map(bool, (image_path, csv_path, folder_path))) != 1:
        raise UsageError("give exactly one of --image_path (one study), --csv_path and --folder_path (a batch)")
    if image_path and (batch_size or output_path):
        raise UsageError("--batch_size and --output_path belong to a batch; for one image or study nothing is written")
    results = output_path or RESULTS
    load = partial(_load, model_path, image_size, device, precision)
    if image_path:
        _rank(load, image_path, query, as_json)
        return
    from knee_siglip.inference.outputs import Outputs

    outputs = Outputs.beside(results)
    with sole_writer(outputs.embeddings):  # results.csv and results.parquet have the same
        _check_outputs(outputs, csv_path, overwrite)
        _infer_batch(load, csv_path, folder_path, query, outputs, batch_size or BATCH_SIZE, as_json)


def _load(model_path: Path, image_size: int | None, device: str, precision: str) -> "Predictor":
    from knee_siglip.inference.predictor import Predictor

    return Predictor(model_path, image_size, device, precision)


def _rank(load: "Callable[[], Predictor]", images: list[Path], query: list[str] | None, as_json: bool) -> None:
    predictor = load()
    import numpy as np

    from knee_siglip.imaging.appearance import read_with_warnings

    read = [read_with_warnings(path) for path in images]
    pixels = np.stack([predictor.transform(image.grey) for image, _ in read])
    prediction = predictor.predict_study(pixels, query or predictor.task.queries)
    names = [readable_name(path) for path in images]
    if not as_json:
        _show_prediction(", ".join(names), prediction, predictor)
        return
    shown = _as_dict(prediction) | {"model": _facts(predictor)}
    if len(images) == 1:
        _show_json({"image": names[0]} | shown | {"warnings": list(read[0][1])})
    else:
        warnings = {name: list(found) for name, (_, found) in zip(names, read, strict=True)}
        _show_json({"images": names} | shown | {"warnings": warnings})


def _infer_batch(
    load: "Callable[[], Predictor]",
    csv_path: Path | None,
    folder_path: Path | None,
    query: list[str] | None,
    outputs: "Outputs",
    batch_size: int,
    as_json: bool,
) -> None:
    from knee_siglip.inference.batch import infer_batch
    from knee_siglip.inference.rows import read_folder, read_rows

    table = read_rows(csv_path) if csv_path else read_folder(cast(Path, folder_path))
    predictor = load()
    summary = infer_batch(predictor, table, query or predictor.task.queries, outputs, batch_size)
    if is_first_process():
        _show_summary(summary, outputs, as_json)
    if summary.failed:
        raise typer.Exit(EXIT_ROWS_FAILED)


def _check_outputs(outputs: "Outputs", csv_path: Path | None, overwrite: bool) -> None:
    """Raise `UsageError` where a batch would replace its input, or a file that no interrupted run of it has written."""
    if outputs.results.suffix not in RESULT_SUFFIXES:
        raise UsageError(f"--output_path {outputs.results}: its name must end with {' or '.join(RESULT_SUFFIXES)}")
    for path in (outputs.results, outputs.embeddings, outputs.ids, outputs.studies):
        if path.is_dir() or (csv_path and path.resolve() == csv_path.resolve()):
            raise UsageError(
                f"{path} would be written, and is a folder or the input itself; name another --output_path"
            )
        if path.exists() and not overwrite and not outputs.partial.exists():
            raise UsageError(f"{path} exists; name another --output_path or add --overwrite")


def _show_summary(summary: "Summary", outputs: "Outputs", as_json: bool) -> None:
    counts = summary.metrics()
    if as_json:
        _show_json(counts | summary.speed())
    else:
        echo(f"{counts['ok']} of {counts['rows']} images done, {counts['failed']} failed (column status)")
        if counts["unlike_training_images"]:
            echo(f"{counts['unlike_training_images']} are unlike the training images (column warnings)")
        files = [outputs.results, outputs.embeddings, outputs.ids, *([outputs.studies] if summary.studies else [])]
        echo(", ".join(map(readable_name, files)))


def _as_dict(prediction: "Prediction") -> dict[str, Any]:
    labels = prediction.labels
    probabilities = dict(zip(labels.values, prediction.probabilities, strict=True))
    graded = {labels.column: prediction.label, f"{labels.prefix}_probabilities": probabilities} if labels else {}
    return {
        "cautions": prediction.cautions,
        "unlike_training_images": prediction.is_unlike_training,
        "distance_to_training": prediction.distance,
        "queries": [vars(ranked) for ranked in prediction.ranking],
        **graded,
    }


def _facts(predictor: "Predictor") -> dict[str, Any]:
    """What the model was trained on, and the temperature of these probabilities."""
    facts = predictor.checkpoint.facts
    return ({} if facts is None else facts.model_dump(exclude={"prompts", "words"})) | {
        "temperature": predictor.temperature
    }


def _show_json(values: dict[str, Any]) -> None:
    echo(json.dumps(values, indent=2, allow_nan=False))


def _show_prediction(shown: str, prediction: "Prediction", predictor: "Predictor") -> None:
    from rich.table import Table
    from rich.text import Text

    from knee_siglip.core.terminal import Terminal

    table = Table("query", "similarity", "probability", title=Text(shown))
    for ranked in prediction.ranking:
        table.add_row(Text(ranked.query), f"{ranked.similarity:+.3f}", f"{ranked.probability:.3f}")
    console = Terminal()
    console.print(table)
    console.print("Probability: that text and image are a pair, by the model; the order counts.", style="dim")
    if prediction.labels:
        pairs = zip(prediction.labels.values, prediction.probabilities, strict=True)
        grades = ", ".join(f"{label}: {value:.2f}" for label, value in pairs)
        kind = "zero-shot" if predictor.temperature is None else "zero-shot, calibrated"
        title = f"{predictor.task.label_title} {prediction.label} ({kind}; {grades})"
        console.print(title, highlight=False, soft_wrap=True)
    style = "bold red" if prediction.is_unlike_training else "yellow"
    console.print(f"Caution: {'; '.join(prediction.cautions)}", style=style, highlight=False, soft_wrap=True)


@app.command()
def train(
    context: typer.Context,
    params: Annotated[
        Path | None,
        typer.Option("--params", help="Params file or preset to start from. None: ./params.yaml, else defaults."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="None: runs/<experiment_name>, or runs/train.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run in output_dir.")] = False,
    data_path: Annotated[str | None, typer.Option("--data_path", help="CSV with img_path, impression, split.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch_size", help="Pairs per batch.")] = None,
    image_size: Annotated[int | None, typer.Option("--image_size", help="Pixels, such as 224 or 448.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", help="Passes over the training split.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimizer steps, instead of epochs.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning_rate", help="Peak of the one-cycle schedule.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight_decay", help="Of AdamW.")] = None,
    warmup_ratio: Annotated[float | None, typer.Option("--warmup_ratio", help="Share of the steps.")] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Sets the initial scale, 1/temperature.")
    ] = None,
    max_text_length: Annotated[
        int | None, typer.Option("--max_text_length", help="Tokens; above 64 the table grows.")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None,
        typer.Option("--gradient_accumulation_steps", help="Batches that meet in one exact contrastive batch."),
    ] = None,
    mixed_precision: Annotated[
        bool | None,
        typer.Option("--mixed_precision/--no-mixed_precision", help="bf16 or fp16 where the device has it."),
    ] = None,
    project_name: Annotated[
        str | None, typer.Option("--project_name", help="MLflow experiment and W&B project.")
    ] = None,
    experiment_name: Annotated[
        str | None, typer.Option("--experiment_name", help="Names the run and its folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random.")] = None,
    vision: Annotated[str | None, typer.Option("--vision", help="small, a hub id or a local folder.")] = None,
    vision_revision: Annotated[
        str | None, typer.Option("--vision_revision", help="40-digit commit on the hub.")
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="small, a hub id or a local folder.")] = None,
    text_revision: Annotated[str | None, typer.Option("--text_revision", help="40-digit commit on the hub.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")] = "auto",
) -> None:
    """Train outside DVC: validate, preprocess and train on a CSV, into a folder of its own."""
    from knee_siglip.cli.train import FLAGS, check_output_dir, default_output_dir, params_with_flags, train_outside_dvc

    merged = params_with_flags(params, {flag: context.params[flag] for flag in FLAGS})
    folder = output_dir or default_output_dir(merged)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        check_output_dir(folder, overwrite)
        train_outside_dvc(merged, folder, device)


@app.command()
def doctor(
    online: Annotated[bool, typer.Option("--online", help="Also ask the hub and an MLflow server, 3 s each.")] = False,
) -> None:
    """Check this machine's setup and say what to do (exit code 1: nothing will run)."""
    from rich.table import Column, Table
    from rich.text import Text

    from knee_siglip.cli.doctor import examine
    from knee_siglip.core.terminal import Terminal

    checks = examine(online)
    table = Table("check", "state", Column("what there is", overflow="fold"), Column("what to do", overflow="fold"))
    for check in checks:
        state = Text(check.state, style=STATE_STYLES[check.state])
        table.add_row(check.name, state, Text(check.detail), Text(check.advice))
    Terminal().print(table)
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(EXIT_FAILED)
