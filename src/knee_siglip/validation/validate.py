"""The validate stage: from the user's CSV to the manifest, or to a list of all its errors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.tables.ids import known_ids
from knee_siglip.tables.manifest import EXTERNAL, TOKENS_COLUMN, write_manifest
from knee_siglip.tables.shards import Shard
from knee_siglip.tables.table import TableError, read_table
from knee_siglip.tables.text import fitting_text_length, load_tokenizer, normalise_text, position_count
from knee_siglip.tables.views import expand_views
from knee_siglip.task.task import Task
from knee_siglip.validation import rows as checks
from knee_siglip.validation.external import read_external
from knee_siglip.validation.images.inspection import NO_FACTS, ImageFacts, Result, inspect_images
from knee_siglip.validation.images.near_duplicates import near_duplicate_pairs
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.outputs import ISSUES, remove_results, show, write_results
from knee_siglip.validation.splits import leakage
from knee_siglip.validation.splits.cohort import cohort_metrics, counts
from knee_siglip.validation.splits.shift import check_shift
from knee_siglip.validation.splits.shortcuts import check_shortcuts
from knee_siglip.validation.studies import check_studies
from knee_siglip.validation.texts.checks import check_texts, text_metrics
from knee_siglip.validation.texts.reports import take_impressions
from knee_siglip.validation.texts.tokens import Tokens

NOTHING_READ = pd.DataFrame({name: pd.Series(dtype=str) for name in ("split", "patient_id", "image_id", "text")})

WORKING_COLUMNS = ("pixel_id", "kind", "file_bytes", "mean", "std", "inverted", "doubtful", "fingerprint")
"""Facts of the images that the checks use and the manifest leaves out."""

CSV_ROW = "csv_row"
"""Working column of the checked rows, which tells the row of an image whose index is another."""


@dataclass(frozen=True)
class Outcome:
    """What the checks found.

    table: the rows kept, with the manifest's and the working columns; carried: input columns of the same names as
    working ones; foreign: columns that only the external CSV has.
    """

    table: pd.DataFrame
    issues: list[Issue]
    metrics: dict[str, Any]
    carried: pd.DataFrame
    foreign: Sequence[str] = ()


def validate(
    params: Params,
    manifest_path: Path = paths.MANIFEST,
    report_folder: Path = paths.VALIDATION_REPORT,
    text_encoder: Path = paths.BACKBONES / "text",
) -> pd.DataFrame:
    """Check the whole of `data.csv`, `data.external` and their images; write the results, then the manifest; return it.

    Rows of the split `external` go into `external.parquet` beside it, so that they never change a training.

    text_encoder: folder of the tokenizer; if it does not exist, truncation and unknown words are not checked.

    Raises:
        UserError: there are errors; all are in issues.csv and the first on the screen; no manifest is written.
    """
    remove_results(report_folder)
    outcome, external_path = _check(params, text_encoder), manifest_path.with_name(paths.EXTERNAL_MANIFEST.name)
    write_results(report_folder, outcome.table, outcome.issues, outcome.metrics, params.task.label_column)
    errors = [issue for issue in outcome.issues if issue.severity == "error"]
    named = paths.lasting_report(report_folder) if errors else report_folder
    show(outcome.issues, named)
    if errors:
        for path in (manifest_path, external_path):
            path.unlink(missing_ok=True)  # an older one would pass for this CSV's
        raise UserError(f"{params.data.csv}: {_summary(errors)}; all in {named / ISSUES}")
    manifest = outcome.table.drop(columns=[*WORKING_COLUMNS, CSV_ROW]).join(outcome.carried)
    is_external = manifest["split"] == EXTERNAL
    write_manifest(manifest[is_external], external_path)
    manifest = manifest[~is_external].drop(columns=list(outcome.foreign))
    write_manifest(manifest, manifest_path)
    return manifest


def inspect_shard(params: Params, shard: Shard) -> int:
    """Inspect this shard's part of the images, beside other shards; returns how many. `validate` then finds the facts.

    What cannot be read is reported by `validate`. A killed shard is continued by the same command.

    Raises:
        UserError: the CSV cannot be read.
    """
    csv = Path(params.data.csv)
    try:
        table = expand_views(read_table(csv)).table
    except TableError as error:
        raise UserError(f"{csv}: {error}") from None
    if unusable := checks.check_columns(table, csv):
        raise UserError(unusable[0].message)
    names = shard.take(name for name in checks.image_files(table, csv) if name)
    inspect_images(names)
    return len(names)


def _check(params: Params, text_encoder: Path) -> Outcome:
    """Run every check; there are no rows if the CSV cannot be read or its columns are wrong."""
    csv = Path(params.data.csv)
    try:
        table = read_table(csv)
        external, unusable = read_external(params.data.external, csv)
        unusable = [*checks.check_columns(expand_views(table).table, csv), *unusable]
    except TableError as error:
        unusable = [Issue("error", "unreadable_csv", error.row, str(csv), str(error))]
    if unusable:
        return Outcome(NOTHING_READ, unusable, counts(NOTHING_READ), NOTHING_READ)
    # a study or an image of both is found by checking them together
    expanded = expand_views(
        table if external.empty else pd.concat({"": table, str(params.data.external): external}).fillna("")
    )
    outcome = _check_rows(expanded.table, csv, params, text_encoder)
    rows = [expanded.name(number).row for number in outcome.table.index.tolist()]
    issues = [issue.of_csv(expanded) for issue in outcome.issues]
    foreign = [str(name) for name in external if name not in expand_views(table).table]
    return replace(outcome, table=outcome.table.assign(**{CSV_ROW: rows}), issues=issues, foreign=foreign)


def _check_rows(table: pd.DataFrame, csv: Path, params: Params, text_encoder: Path) -> Outcome:
    """Run every check on rows whose columns are right; issues name them by the table's index."""
    carried = table[table.columns.intersection([*WORKING_COLUMNS, CSV_ROW])]
    task = task_of(params)
    patients, unknown = leakage.patient_ids(table, params.data.patient_id_pattern)
    files = checks.image_files(table, csv)
    inspected = inspect_images(name for name in files if name)
    issues = [
        *checks.check_splits(table),
        *checks.check_labels(table, task.labels),
        *checks.check_duplicate_rows(table),
        *unknown,
        *leakage.check_ids(table, "study_id"),
        *checks.check_folders(files),
        *checks.check_images(table, files, inspected),
        *checks.check_outside(files, params.data.images),
    ]
    table, reports = take_impressions(table, params.validate_.sections)
    table = checks.parse_labels(_add_columns(table, patients, files, inspected), task.labels)
    pairs = near_duplicate_pairs(table)
    table, leaks = leakage.find_leaks(table, params.validate_.on_leak, pairs)
    issues += [
        *reports,
        *check_studies(table),
        *leaks,
        *leakage.check_repeated_images(table),
        *checks.check_split_counts(table, csv),
    ]
    table, more, metrics = _examine(table, params, task, text_encoder)
    return Outcome(table, issues + more, metrics, carried)


def _examine(
    table: pd.DataFrame, params: Params, task: Task, text_encoder: Path
) -> tuple[pd.DataFrame, list[Issue], dict[str, Any]]:
    """Check and measure the rows kept."""
    tokens = _tokens(table, params.model.max_text_length, text_encoder)
    if tokens is not None:
        table = table.assign(**{TOKENS_COLUMN: table["text"].map(tokens.counts)})
    table, looks = checks.check_appearance(table)
    shift, shifted = check_shift(table, task)
    shortcuts, predictable = check_shortcuts(table, task)
    metrics = {
        **counts(table),
        "splits": cohort_metrics(table, task),
        "texts": text_metrics(table, tokens),
        "shift": shift,
        "shortcuts": shortcuts,
    }
    return table, [*looks, *check_texts(table, tokens, task), *shifted, *predictable], metrics


def _tokens(table: pd.DataFrame, length: int | Literal["auto"], text_encoder: Path) -> Tokens | None:
    """The tokenizer's work, and the length by which texts count as truncated; None without a tokenizer."""
    if not text_encoder.is_dir():
        return None
    tokenizer = load_tokenizer(text_encoder)
    if length != "auto":
        return Tokens(tokenizer, table["text"], length)
    positions = position_count(text_encoder)
    tokens = Tokens(tokenizer, table["text"], positions)
    train = table.loc[table["split"] == "train", "text"]
    tokens.length = fitting_text_length(train.map(tokens.counts), positions)
    return tokens


def _add_columns(
    table: pd.DataFrame, patients: pd.Series, files: pd.Series, inspected: Mapping[str, Result]
) -> pd.DataFrame:
    """The manifest's columns (manifest.py) and the working ones; an image that cannot be read has an empty id."""
    found = [image if isinstance(image := inspected.get(name), ImageFacts) else NO_FACTS for name in files]
    facts = {field.name: [getattr(image, field.name) for image in found] for field in fields(ImageFacts)}
    made = ("image_id", "width", "height", "bits")
    if "study_id" in table.columns:
        table = table.assign(study_id=known_ids(table["study_id"]))
    return table.assign(
        patient_id=patients,
        image_file=files,
        **{name: facts[name] for name in made},
        text=table["impression"].map({text: normalise_text(text) for text in table["impression"].unique().tolist()}),
        flags="",
        **{name: facts[name] for name in WORKING_COLUMNS},
    )


def _summary(errors: Sequence[Issue]) -> str:
    """`3 errors (2 missing_image, 1 unknown_split)`."""
    named = Counter(issue.check for issue in errors)
    kinds = ", ".join(f"{count} {check}" for check, count in named.most_common())
    return f"{len(errors)} error{'s' if len(errors) > 1 else ''} ({kinds})"
