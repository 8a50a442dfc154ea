"""From what people have to the project's CSV: tables, folders of classes, DICOMs, known data sets.

`import_data` finds the rows and their images, joins what lies beside them, maps columns and values, takes or composes
the impressions, and keeps one row an image. Nothing of the source is changed.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.importing import grouping, impressions, proposals
from knee_siglip.importing.columns import (
    IMAGE,
    OURS,
    REPORT,
    WORKING,
    fields,
    fill,
    fill_template,
    mapped,
    our_value,
)
from knee_siglip.importing.dicoms import IDS, pseudonym_key, pseudonyms
from knee_siglip.importing.files import Files
from knee_siglip.importing.finding import find_rows, join_given, join_table
from knee_siglip.importing.layout import Layout
from knee_siglip.importing.outcome import Outcome
from knee_siglip.importing.paths import image_names, path_groups
from knee_siglip.importing.reading import read_list
from knee_siglip.importing.work import Import, Options
from knee_siglip.tables.manifest import MADE_COLUMNS, SPLITS, TOKENS_COLUMN

RESERVED = (*OURS, *MADE_COLUMNS, TOKENS_COLUMN)
"""Names that a carried column cannot have."""

LISTED = 8

PERSONAL = re.compile(
    r"(?<![a-z])(?:(?:last|first|sur|family|patient.?)?names?|nombres?|apellidos?|nomes?|noms?|prenoms?|vorname|nachname"
    r"|radiologi\w+|physician|doctor|arzt|\w*birth\w*|dob|geburt\w*|nacimiento|nascimento|naissance|address|phone)(?![a-z])",
    re.IGNORECASE,
)
"""In a carried column's name: who the patient or the reader is."""


def import_data(options: Options) -> tuple[pd.DataFrame, Outcome, Files]:
    """The rows as the project's CSV has them, what happened, and the files below which the images lie.

    `img_path` is relative to `Files.root`. The index holds nothing.

    Raises:
        UsageError: an option does not fit the source.
        UserError: the source cannot be read, or no row is left.
    """
    source = options.source
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a table or a folder")
    files = Files(source if source.is_dir() else source.parent)
    images = Files(options.images) if options.images else files
    work = Import(options, files, images, Outcome(str(source)))
    layout, rows = find_rows(work)
    layout = _with_maps(layout, options)
    rows = _with_pattern(rows, options.pattern)
    rows = join_given(rows, work)
    if not layout.impression:
        rows = _with_reports(rows, layout, work)
    rows = _map_columns(rows, layout, work)
    rows = _one_row_each(rows, layout, work)
    rows = _with_lists(rows, layout, work)
    if rows.empty:
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in work.outcome.reasons().items())
        raise UserError(f"{source}: no row is left: {reasons or 'there is none'}")
    work.outcome.notes += layout.notes
    work.outcome.task = layout.task
    return (
        _finish(rows, [c.source for c in work.outcome.columns if c.name == "impression"], work),
        work.outcome,
        work.images,
    )


def _with_maps(layout: Layout, options: Options) -> Layout:
    """The layout with the user's own columns and template in the place of its own."""
    if unknown := [name for name in options.maps if name not in OURS]:
        raise UsageError(f"--map {unknown[0]}=...: the columns that can be mapped are {', '.join(OURS)}")
    columns = {name: source for name, source in options.maps.items() if name not in ("img_path", "impression")}
    changes: dict[str, object] = {"columns": {**layout.columns, **columns}}
    if "impression" in options.maps:
        changes |= {"impression": [options.maps["impression"]], "texts": None, "labels": None}
    return layout.model_copy(update=changes)


def _with_pattern(rows: pd.DataFrame, pattern: str | None) -> pd.DataFrame:
    if not pattern:
        return rows
    try:
        names = list(re.compile(pattern).groupindex)
    except re.error as error:
        raise UsageError(f"--pattern {pattern!r} is no regular expression: {error}") from None
    if not names:
        raise UsageError(f"--pattern {pattern!r} names no group: write (?P<patient_id>...) for the column patient_id")
    groups = path_groups(rows[IMAGE], pattern)
    if (groups == "").all(axis=None):
        raise UserError(f"--pattern {pattern!r} fits no image; the first is {rows[IMAGE].iloc[0]}")
    return rows.drop(columns=[name for name in names if name in rows]).join(groups)


def _with_reports(rows: pd.DataFrame, layout: Layout, work: Import) -> pd.DataFrame:
    """The rows with their reports: the column of a table, or text files; unasked where nothing else tells a text."""
    path = work.options.reports
    if path and not path.exists():
        raise UsageError(f"--reports {path} does not exist")
    if path and path.is_file():
        return join_table(rows, path, None, work)
    folder = Files(path) if path else work.files
    if layout.reports:
        return impressions.read_texts(rows, layout.reports, folder, work.outcome)
    if not path and (layout.labels or layout.texts or "impression" in work.options.maps or work.options.template):
        return rows
    key = impressions.report_key(rows, folder)
    if not key and path:
        raise UserError(f"{path}: no text file is named like an image, a folder of images or an id of the rows")
    if not key:
        return rows
    names = image_names(rows)
    found = impressions.read_texts(rows.join(names), f"{{{key}}}", folder, work.outcome)
    return found.drop(columns=list(names))


def _map_columns(rows: pd.DataFrame, layout: Layout, work: Import) -> pd.DataFrame:
    """The rows with our columns; source columns that ours are made of by name go, others stay."""
    options, outcome = work.options, work.outcome
    if layout.vote_by and layout.labels:
        rows = grouping.vote(rows, layout.vote_by, layout.labels.columns, outcome)
    if REPORT not in rows and not (layout.impression or layout.labels or layout.texts or options.template):
        layout = _found_texts(rows, layout, outcome)
    made: dict[str, pd.Series] = {}
    for name, source in layout.columns.items():
        where = f"--map {name}={source}" if name in options.maps else f"column {name}"
        cells = fill(rows, source, where)
        cells = mapped(cells, layout.values.get(name, {}))
        made[name] = cells.map({cell: our_value(name, cell) for cell in cells.unique()})
        if name not in ("patient_id", "study_id"):
            outcome.changed(name, cells, made[name])
    if options.pattern:
        made |= {name: rows[name].map(lambda cell, name=name: our_value(name, cell)) for name in OURS if name in rows}
    used = {source for name, source in layout.columns.items() if source in rows.columns}
    texts = _impressions(rows.assign(**made), layout, options, outcome)
    rows = _without_ids(rows.drop(columns=[*(used - {*IDS})]).assign(**made), work)
    rows = rows.rename(columns={name: f"source_{name}" for name in RESERVED if name in rows and name not in made})
    return rows.assign(impression=texts)


def _found_texts(rows: pd.DataFrame, layout: Layout, outcome: Outcome) -> Layout:
    """The layout with the column that may be an impression, such as that of a table joined to DICOMs."""
    taken = {name for source in layout.columns.values() for name in fields(source)} | set(IDS)
    texts = proposals.text_columns(rows, taken | {"body_part", "pixels_sha256", "report_file"})
    if not texts:
        raise UserError(
            f"{outcome.source}: there is no text for the images; name a table or folder of reports with --reports, a "
            "column with --map impression=COLUMN, or compose texts with --template"
        )
    outcome.mapped("impression", ", else ".join(texts), "its name or its sentences")
    return layout.model_copy(update={"impression": texts})


def _impressions(rows: pd.DataFrame, layout: Layout, options: Options, outcome: Outcome) -> pd.Series:
    """The first of: a template, reports, columns of texts, labels, sentences for a column's values."""
    if options.template:
        outcome.note(f"The impressions were composed by the template {options.template!r}.")
        composed = fill_template(rows, options.template, "--template").map(lambda text: " ".join(text.split()))
        outcome.impressions["composed by --template"] = int((composed != "").sum())
        return composed
    columns = [*([REPORT] if REPORT in rows else []), *layout.impression]
    if columns:
        texts = impressions.take(rows, columns, outcome)
        if (texts != "").any() or not (layout.labels or layout.texts):
            return texts
        outcome.note("No row has a report: is their folder named with --reports?")
    if layout.labels:
        return impressions.compose_labels(rows, layout.labels, outcome)
    if layout.texts:
        return impressions.compose_texts(rows, layout.texts, outcome)
    return pd.Series("", rows.index, dtype=object)


def _one_row_each(rows: pd.DataFrame, layout: Layout, work: Import) -> pd.DataFrame:
    outcome = work.outcome
    if layout.main_reader:
        rows = grouping.second_reader(rows, layout.main_reader, "kl_grade", work.images, outcome)
    if layout.sides_in_one:
        rows = grouping.two_knees(outcome.drop(rows, rows["impression"] == "", "no reading for this image"), outcome)
    return grouping.one_row_per_image(rows, outcome)


def _with_lists(rows: pd.DataFrame, layout: Layout, work: Import) -> pd.DataFrame:
    """The rows with the splits of the files that list each split's images."""
    for split, pattern in layout.lists.items():
        for file in work.files.matching(pattern):
            listed = {Path(name).name for name in read_list(work.files.root / file)}
            chosen = rows[IMAGE].map(lambda name: name.rpartition("/")[2]).isin(listed)
            work.outcome.read(file, len(listed))
            work.outcome.mapped("split", file, f"layout {work.outcome.layout}: {split}")
            old = rows["split"] if "split" in rows else pd.Series("", rows.index)
            rows = rows.assign(split=old.mask(chosen, split))
    return rows


def _without_ids(rows: pd.DataFrame, work: Import) -> pd.DataFrame:
    """Of DICOM headers: pseudonyms in the place of patient and study ids, and no other id."""
    if "pixels_sha256" not in rows:
        return rows
    ids = rows[[name for name in IDS if name in rows]]
    rows = rows.drop(columns=ids.columns)
    if work.options.keep_ids:
        return rows
    if telling := [name for name in rows.columns if name not in (*OURS, *WORKING) and _repeats(rows[name], ids)]:
        work.outcome.note(f"left out, for they hold the ids that pseudonyms replace: {', '.join(telling)}")
        rows = rows.drop(columns=telling)
    key = pseudonym_key(work.options.out.parent)
    work.outcome.note(
        "patient_id and study_id are pseudonyms (HMAC-SHA-256); their key lies beside the CSV: keep it for further "
        "imports, delete it to make them final; --keep_ids copies the ids"
    )
    return rows.assign(**{name: pseudonyms(rows[name], key) for name in ("patient_id", "study_id")})


def _repeats(cells: pd.Series, ids: pd.DataFrame) -> bool:
    """Whether a column mostly holds ids of its own rows, also as files' names: `ACC1.txt`."""
    names = cells.map(lambda cell: PurePosixPath(cell).stem.casefold())
    same = pd.concat([names == ids[name].str.strip().str.casefold() for name in ids.columns], axis=1).any(axis=1)
    return bool((same & (names != "")).sum() > 0.5 * max(1, (names != "").sum()))


def _finish(rows: pd.DataFrame, texts: Sequence[str], work: Import) -> pd.DataFrame:
    """Our columns first, then the others; totals for the report.

    texts: columns that the impressions were taken from; one that the impression repeats goes.
    """
    outcome = work.outcome
    rows = rows.assign(img_path=rows[IMAGE])
    others = [name for name in rows.columns if name not in OURS and name not in WORKING]
    ours = {"source_img_path": "img_path", "source_impression": "impression"} | dict.fromkeys(texts, "impression")
    same = {name for name, made in ours.items() if name in rows and rows[name].eq(rows[made]).all()}
    carried = [name for name in others if not name.startswith("(") and name not in same]
    outcome.rows, outcome.images = len(rows), len(work.images.images)
    outcome.unused_images = outcome.images - rows[IMAGE].nunique()
    if "split" in rows:
        counts = rows["split"].replace("", "(none)").value_counts()
        outcome.splits = {str(name): int(count) for name, count in counts.items()}
        if odd := sorted(set(rows["split"]) - {*SPLITS, ""}):
            outcome.note(f"split: {', '.join(odd[:LISTED])} is none of {', '.join(SPLITS)}; validation will refuse it")
    if carried:
        more = f" and {len(carried) - LISTED} more" if len(carried) > LISTED else ""
        outcome.note(f"carried as they are: {', '.join(carried[:LISTED])}{more}")
    if personal := [name for name in carried if PERSONAL.search(name)]:
        outcome.note(
            f"{', '.join(personal[:LISTED])}: by their names these columns may tell who a person is; they go into "
            "the CSV and results.csv as they are, so remove from the source what nobody needs"
        )
    return rows[[*(name for name in OURS if name in rows), *carried]].reset_index(drop=True)
