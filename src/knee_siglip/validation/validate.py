"""The validate stage: from the user's CSV to the manifest, or to a list of everything that is wrong with it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from knee_siglip import paths
from knee_siglip.data.manifest import write_manifest
from knee_siglip.data.table import TableError, read_table
from knee_siglip.data.text import normalise_text
from knee_siglip.errors import UserError
from knee_siglip.params import Params
from knee_siglip.validation import checks, leakage, report
from knee_siglip.validation.findings import Finding
from knee_siglip.validation.inspection import Failure, ImageFacts, inspect_images

NOTHING_READ = pd.DataFrame({name: pd.Series(dtype=str) for name in ("split", "patient_id", "image_id", "text")})

NO_IMAGE = ImageFacts(image_id="", width=0, height=0, bits=0, kind="", file_bytes=0, mean=0.0, std=0.0)


def validate(
    params: Params, manifest_path: Path = paths.MANIFEST, report_folder: Path = paths.VALIDATION_REPORT
) -> pd.DataFrame:
    """Check the whole of `data.csv` and its images; write the report, then the manifest, and return it.

    Raises:
        UserError: there are errors; all of them are on the screen and in the report, and no manifest is written.
    """
    table, findings = _check(params)
    report.write_report(report_folder, table, findings)
    report.show(findings, report_folder)
    if errors := [finding for finding in findings if finding.severity == "error"]:
        manifest_path.unlink(missing_ok=True)  # an older one would pass for this CSV's
        raise UserError(f"{params.data.csv}: {_summary(errors)}; all in {report_folder / report.FINDINGS}")
    write_manifest(table, manifest_path)
    return table


def _check(params: Params) -> tuple[pd.DataFrame, list[Finding]]:
    """Every check. Returns the manifest's rows (none where the CSV could not be understood) and all findings."""
    csv = Path(params.data.csv)
    try:
        table = read_table(csv)
    except TableError as error:
        return NOTHING_READ, [Finding("error", "unreadable_csv", error.row, str(csv), str(error))]
    if findings := checks.check_columns(table, csv):
        return NOTHING_READ, findings
    findings = [
        *checks.check_splits(table),
        *checks.check_texts(table),
        *checks.check_grades(table),
        *checks.check_duplicate_rows(table),
    ]
    patients, unknown = leakage.patient_ids(table, params.data.patient_id_pattern)
    files = checks.image_files(table, csv)
    inspected = inspect_images(name for name in files if name)
    unreadable = checks.check_images(table, files, inspected)
    table = _add_columns(table, patients, files, inspected)
    table, leaks = leakage.find_leaks(table, params.validate_.on_leak)
    findings += [
        *unreadable,
        *unknown,
        *leaks,
        *leakage.check_repeated_images(table),
        *checks.check_outside(files, params.data.images),
        *checks.check_split_counts(table, csv),
    ]
    return table, findings


def _add_columns(
    table: pd.DataFrame, patients: pd.Series, files: pd.Series, inspected: Mapping[str, ImageFacts | Failure]
) -> pd.DataFrame:
    """The manifest's columns (manifest.py); rows without a readable image have an empty id and size 0."""
    found = [image if isinstance(image := inspected.get(name), ImageFacts) else NO_IMAGE for name in files]
    table = table.assign(
        patient_id=patients,
        image_file=files,
        image_id=[image.image_id for image in found],
        width=[image.width for image in found],
        height=[image.height for image in found],
        bits=[image.bits for image in found],
        text=table["impression"].map(normalise_text),
        flags=["constant_image" if image.image_id and image.std == 0 else "" for image in found],
    )
    if "kl_grade" in table.columns:
        grades = [checks.parse_grade(value) for value in table["kl_grade"]]
        table["kl_grade"] = pd.array(grades, dtype="Int64")
    return table


def _summary(errors: Sequence[Finding]) -> str:
    """`3 errors (2 missing_image, 1 unknown_split)`."""
    counts = Counter(finding.check for finding in errors)
    kinds = ", ".join(f"{count} {check}" for check, count in counts.most_common())
    return f"{len(errors)} error{'s' if len(errors) > 1 else ''} ({kinds})"
