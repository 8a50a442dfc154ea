"""The rows of a source and their images: by a known layout, a table, DICOM headers, reports or folders of classes."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing import impressions, joining, proposals
from knee_siglip.importing.columns import IMAGE, ROW, TABLE, WORDS, fields, fill, grade_of, mapped
from knee_siglip.importing.dicoms import dicom_rows
from knee_siglip.importing.files import Files, is_dicom_name, is_table_name
from knee_siglip.importing.layout import Layout, Texts, detect_layout, named_layout
from knee_siglip.importing.outcome import Outcome
from knee_siglip.importing.paths import image_names, path_groups, study_folders, told_by_paths, with_told
from knee_siglip.importing.reading import read_any, read_tables, sheets_of
from knee_siglip.importing.work import Import
from knee_siglip.validation.rows import SPLIT_SYNONYMS

CLASSES = (2, 60)
"""Fewest and most classes that a folder of classes may have."""

NUMBERED = re.compile(r"\d{3}")
"""In every folder's name: they are patients, studies or dates, no classes."""

UNFIT_SHOWN = 3

REPORTS = 20
"""Text files from which they are reports, and are not read as tables."""


def find_rows(work: Import) -> tuple[Layout, pd.DataFrame]:
    """The layout, and rows that each have an image."""
    options, files = work.options, work.files
    name = options.layout or _detected(work)
    if name:
        layout = named_layout(name)
        work.outcome.layout = name
        return layout, _layout_rows(layout, work)
    tables = _sheets([options.source.name] if options.source.is_file() else _table_names(files), work)
    if len(tables) > 1 or not options.source.is_file():
        tables = _with_images(tables, work)
    if tables or options.source.is_file():
        return _table_rows(tables or [(options.source.name, options.sheet)], work)
    if dicoms := _dicom_names(work.images):
        work.outcome.layout = "DICOM headers"
        return _dicom_layout(work.outcome), dicom_rows(work.images.root, dicoms, work.outcome)
    rows = pd.DataFrame({IMAGE: work.images.images, TABLE: "", ROW: ""})
    folder = Files(options.reports) if options.reports and options.reports.is_dir() else files
    key = impressions.report_key(rows, folder) if not rows.empty else None
    if key or options.reports:
        work.outcome.layout = "images and reports"
        return _reported_rows(rows, key, work)
    work.outcome.layout = "folders of classes"
    return _class_rows(work)


def _table_names(files: Files) -> list[str]:
    """Files that may be tables: not a report for each study."""
    names = [name for name in files.names if is_table_name(name)]
    others = [name for name in names if not name.lower().endswith(".txt")]
    return names if len(names) - len(others) < REPORTS else others


def _sheets(names: Sequence[str], work: Import) -> list[tuple[str, str | None]]:
    """Each table, and each sheet of a workbook that has several, unless --sheet names one."""
    asked = work.options.sheet
    books = {name: [] if asked else sheets_of(work.files.root / name) for name in names if ".xls" in name.lower()}
    return [(name, sheet) for name in names for sheet in (*books.get(name, []),) or (asked,)]


def _reported_rows(rows: pd.DataFrame, key: str | None, work: Import) -> tuple[Layout, pd.DataFrame]:
    """All images, to be joined with reports that are named by `key`, or with the table of --reports at once."""
    work.outcome.read("images by their paths", len(rows))
    reports = work.options.reports
    if reports and reports.is_file():
        rows = join_given(join_table(rows, reports, None, work), work)
        return proposals.propose(rows, work.outcome, {"img_path": IMAGE, **work.options.maps}), rows
    ids = study_folders(rows) if key == "(folder 1)" else pd.DataFrame(index=rows.index)
    for name in ids.columns:
        work.outcome.mapped(name, "(folder)", "the reports are named like the images' folders")
    told = told_by_paths(rows, {*work.options.maps, *ids}, work.outcome)
    rows, columns = with_told(rows, ids.join(told))
    return Layout(title="images and reports", columns=columns), rows


def _detected(work: Import) -> str | None:
    """The preset that the folder is laid out as; for a table only where it is one of the preset's."""
    name = detect_layout(work.files)
    if name and work.options.source.is_file():
        layout = named_layout(name)
        patterns = [pattern for table in (*layout.tables, *layout.joins) for pattern in table.files]
        known = {found for pattern in patterns for found in work.files.matching(pattern)}
        return name if work.options.source.name in known else None
    return name


def _layout_rows(layout: Layout, work: Import) -> pd.DataFrame:
    outcome, encoding = work.outcome, work.options.encoding
    if not layout.tables:
        rows = _path_rows(layout, work)
    else:
        parts = [read_tables(table, work.files, outcome, encoding) for table in layout.tables]
        found = [part for part in parts if part is not None]
        if not found:
            wanted = ", ".join(pattern for table in layout.tables for pattern in table.files)
            raise UserError(f"{work.options.source}: the layout {outcome.layout} needs {wanted}, which is not there")
        rows = pd.concat(found, ignore_index=True).fillna("")
    for name, pattern in layout.patterns.items():
        rows = rows.join(path_groups(fill(rows, name, "the rows"), pattern))
    rows = _valued(rows, layout)
    for joined in layout.joins:
        other = read_tables(joined, work.files, outcome, encoding)
        if other is None:
            outcome.note(f"{' or '.join(joined.files)} is not there: its columns are missing")
            needed = [name for source in layout.columns.values() for name in fields(source)]
            rows = rows.assign(**{name: "" for name in needed if name not in rows})
        else:
            rows = joining.join(rows, _valued(other, layout), joined.on, joined.prefer, outcome)
    for name, source in layout.columns.items():
        outcome.mapped(name, source, f"layout {outcome.layout}")
    if not layout.tables:
        return rows
    outcome.mapped("img_path", layout.image, f"layout {outcome.layout}")
    return _locate(rows, work.options.maps.get("img_path", layout.image), work)


def _path_rows(layout: Layout, work: Import) -> pd.DataFrame:
    """The images whose paths a layout's patterns match, with their groups as columns."""
    skipped = {
        name: reason
        for pattern, reason in layout.skip.items()
        for name in work.images.images
        if re.search(pattern, name)
    }
    kept = [name for name in work.images.images if name not in skipped]
    if not kept:  # what a larger download leaves out is all that is here
        kept, skipped = work.images.images, {}
    names = pd.Series(kept, dtype=object)
    rows = pd.DataFrame({IMAGE: names, TABLE: "", ROW: ""})
    groups = path_groups(names, *layout.paths)
    rows = rows.join(groups)
    unknown = (groups == "").all(axis=1)
    if unknown.all():
        raise UserError(f"{work.images.root}: no image's path is that of the layout {work.outcome.layout}")
    work.outcome.dropped += [("", "", name, reason) for name, reason in skipped.items()]
    work.outcome.read("images by their paths", len(rows))
    return work.outcome.drop(rows, unknown, "its path is not the layout's").reset_index(drop=True)


def _table_rows(tables: Sequence[tuple[str, str | None]], work: Import) -> tuple[Layout, pd.DataFrame]:
    """The table that names the images, with those joined that have an id of it; columns are proposed."""
    options, outcome = work.options, work.outcome
    name, sheet = tables[0]
    first = read_any(work.files.root / name, outcome, options.encoding, sheet)
    if first.empty:
        raise UserError(f"{work.files.root / name} has a header and no rows")
    outcome.read(first[TABLE].iloc[0], len(first))
    if not options.images and (root := proposals.absolute_root(first)):
        work.images = Files(root)
    given = dict(options.maps)
    by_view = {} if "img_path" in given else proposals.columns_by_view(first, work.images)
    if by_view:
        first = proposals.unroll(first, by_view)
        outcome.note(f"columns of images were unrolled, one row an image: {', '.join(by_view)}")
    image = given.get("img_path") or proposals.image_column(first, work.images)
    rows = _locate(first, image, work)
    for name, sheet in tables[1:]:
        other = read_any(work.files.root / name, outcome, options.encoding, sheet)
        if keys := joining.common_id(rows, other):
            outcome.read(other[TABLE].iloc[0], len(other))
            rows = joining.join(rows, other, {keys[0]: keys[1]}, {}, outcome)
    rows = join_given(rows, work)
    layout = proposals.propose(rows, outcome, {"img_path": image, **given})
    rows, told = with_told(rows, told_by_paths(rows, {*layout.columns, *(["side"] if by_view else [])}, outcome))
    layout = layout.model_copy(update={"columns": layout.columns | told})
    if "img_path" not in given:
        outcome.mapped("img_path", image, "its cells name images that are there")
    return layout, rows


def _with_images(tables: Sequence[tuple[str, str | None]], work: Import) -> list[tuple[str, str | None]]:
    """The readable tables and sheets, the one first that names most images; none if none names any.

    Why a table cannot be the one is kept, for the error of a source that is nothing else.

    Raises:
        UserError: several sheets of the workbook name images.
    """
    shares: dict[tuple[str, str | None], int] = {}
    readable: list[tuple[str, str | None]] = []
    for name, sheet in tables:
        try:
            table = read_any(work.files.root / name, Outcome(""), work.options.encoding, sheet)
            readable.append((name, sheet))
            column = proposals.image_column(table, work.images)
            shares[name, sheet] = sum(found is not None for found in work.images.locate(table[column].tolist()))
        except UserError as error:
            work.unfit.append(str(error))
    ranked = sorted(shares, key=lambda table: -shares[table])
    alike = [str(sheet) for name, sheet in ranked if sheet and name == ranked[0][0]]
    if len(alike) > 1:
        raise UserError(f"{ranked[0][0]} names images in several sheets: name one with --sheet: {', '.join(alike)}")
    return [*ranked[:1], *(table for table in readable if table != ranked[0])] if ranked else []


def _dicom_names(files: Files) -> list[str]:
    """Files that may be DICOMs; none where pictures are more."""
    dicoms = [name for name in files.images if is_dicom_name(name)]
    return dicoms if len(dicoms) > len(files.images) / 2 else []


def _dicom_layout(outcome: Outcome) -> Layout:
    columns = {"patient_id": "PatientID", "study_id": "StudyInstanceUID", "side": "side", "view": "view"}
    for name, source in columns.items():
        outcome.mapped(name, source, "the DICOM headers")
    return Layout(title="DICOM headers", columns=columns)


def _class_rows(work: Import) -> tuple[Layout, pd.DataFrame]:
    """Images in a folder for each class; a folder above it may be the split."""
    names = [name for name in work.images.images if "/" in name]
    classes = sorted({name.split("/")[-2] for name in names} - set(SPLIT_SYNONYMS))
    if not CLASSES[0] <= len(classes) <= CLASSES[1] or all(NUMBERED.search(name) for name in classes):
        if work.unfit:
            raise UserError("; ".join(work.unfit[:UNFIT_SHOWN]))
        found = f"{len(work.images.images):,} images in {len(classes)} folders" + (
            f" such as {classes[0]}" if classes else ""
        )
        raise UserError(
            f"{work.options.source} holds {found}, and no table or text files that name them: give the table, with "
            "--images for the folder of its images, or --reports; folders of classes are named by the classes, "
            f"{CLASSES[0]} to {CLASSES[1]}"
        )
    rows = pd.DataFrame({IMAGE: names, TABLE: "", ROW: "", "class": [name.split("/")[-2] for name in names]})
    rows, columns = with_told(rows, told_by_paths(rows, set(work.options.maps), work.outcome))
    work.outcome.read("images by their folders", len(rows))
    work.outcome.mapped("impression", "class", "the image's folder")
    grades = {name: _class_grade(name) for name in classes}
    if all(grades.values()) and len(set(grades.values())) == len(classes):
        rows["kl_grade"] = rows["class"].map(grades)
        work.outcome.mapped("kl_grade", "class", "all folders are named like grades")
        texts = Texts(column="kl_grade", texts=WORDS["grade_texts"])
        return Layout(title="classes", columns={**columns, "kl_grade": "kl_grade"}, texts=texts), rows
    sentences = {name: name.replace("_", " ").replace("-", " ").strip().capitalize() + "." for name in classes}
    return Layout(title="classes", columns=columns, texts=Texts(column="class", texts=sentences)), rows


def _class_grade(name: str) -> str:
    """`3`, `KL3`, `3Moderate` and `Moderate` to 3; '' for others."""
    words = re.sub(r"[\d\W_]+", "", name.casefold())
    digits = re.sub(r"\D+", "", name)
    if words in WORDS["grades"] and digits in ("", *"01234"):
        return digits or WORDS["grades"][words]
    return grade_of(name)


def join_given(rows: pd.DataFrame, work: Import) -> pd.DataFrame:
    """The rows with the tables of --join, once."""
    for text in work.options.joins:
        file, keys = joining.parse_join(text)
        if any(join.table == Path(file).name for join in work.outcome.joins):
            continue
        rows = join_table(rows, Path(file), keys, work)
    return rows


def join_table(rows: pd.DataFrame, path: Path, keys: tuple[str, str] | None, work: Import) -> pd.DataFrame:
    """The rows with the columns of another table; keys: the rows' and its column, None: those that fit."""
    other = read_any(path, work.outcome, work.options.encoding, work.options.sheet)
    work.outcome.read(path.name, len(other))
    named = rows.join(image_names(rows))
    ours, theirs = joining.require_join(named, other, keys)
    joined = joining.join(named, other, {ours: theirs}, {}, work.outcome)
    extra = [name for name in image_names(rows).columns if name in joined]
    return joined.drop(columns=extra)


def _locate(rows: pd.DataFrame, image: str, work: Import) -> pd.DataFrame:
    """The rows with their images; those without are dropped."""
    cells = fill(rows, image, "img_path")
    located = pd.Series(work.images.locate(cells.tolist()), rows.index, dtype=object)
    rows = rows.assign(**{IMAGE: located.fillna(cells)})
    if located.isna().all():
        example = next(iter(cells[cells != ""]), "")
        raise UserError(
            f"none of the {len(rows):,} images is below {work.images.root}, {example!r} for example; name their folder "
            "with --images"
        )
    rows = work.outcome.drop(rows, cells == "", "it names no image")
    missing = located[rows.index].isna()
    return work.outcome.drop(rows, missing, f"its image is not there, or two have its name (below {work.images.root})")


def _valued(rows: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """The rows with the source's values as the layout maps them; those of our own columns are mapped later."""
    named = {name: values for name, values in layout.values.items() if name in rows and name not in layout.columns}
    return rows.assign(**{name: mapped(rows[name], values) for name, values in named.items()})
