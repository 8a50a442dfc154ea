"""The case browser: every test image with its radiograph, to be filtered, sorted and looked through."""

import base64
import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from knee_siglip.report.cases.cases import Case, CaseList, list_cases
from knee_siglip.report.evaluation.results import EvaluationResults, Row, SplitResults
from knee_siglip.report.evaluation.wording import grade_names, noun
from knee_siglip.report.html.numbers import readable
from knee_siglip.report.html.pictures import Picture, write_pictures
from knee_siglip.report.html.rendering import write_html
from knee_siglip.tables.manifest import read_own_parquet

PAGE, PICTURES = "cases.html", "cases"
EXTERNAL_PAGE = f"{PICTURES}/external.html"
PACKAGE = "knee_siglip.report.cases"
NO_FILE = "the validated data name no file with these bytes"


def write_case_browsers(results: EvaluationResults, image_files: dict[str, str]) -> None:
    """Write cases.html of the split that is shown, and cases/external.html where there is a second test set."""
    shutil.rmtree(results.folder / PICTURES, ignore_errors=True)  # an older evaluation's cases
    maps = results.examples.get("case_maps", ())
    write_case_browser(results.folder / PAGE, results.folder, results.shown, image_files, maps)
    if (external := results.external) is not None:
        write_case_browser(results.folder / EXTERNAL_PAGE, results.folder, external, image_files)


def write_case_browser(
    page: Path, evaluation: Path, split: SplitResults, image_files: dict[str, str], maps: Sequence[Row] = ()
) -> None:
    """Write a page into an evaluation's folder or one below, and its pictures into `cases/` of that folder.

    The page works from a file:// URL without a network. Its bytes depend on its content alone.

    image_files: image_id to a file that has its bytes; images without one are listed without a picture. maps: of single
    cases, as evaluation wrote them.
    """
    shown = _read_cases(evaluation, split, maps)
    root = "../" * (len(page.relative_to(evaluation).parts) - 1)
    ids = [case["image_id"] for case in shown.cases if case["image_id"] in image_files]
    pictures = write_pictures({image_id: image_files[image_id] for image_id in ids}, evaluation / PICTURES)
    graded = any("predicted" in case for case in shown.cases)
    script = files(PACKAGE).joinpath("templates", "cases.js").read_text(encoding="utf-8")
    write_html(
        page,
        PACKAGE,
        "cases.html.j2",
        split=split.name,
        root=root,
        task=split.task,
        noun=noun(split.task),
        total=shown.total,
        count=len(shown.cases),
        titles=_titles(shown),
        columns={name: _choices(shown, name) for name in shown.columns},
        grades=list(zip(split.task.labels.values, grade_names(split.task), strict=True)) if graded else [],
        findings=[(finding["name"], readable(finding["name"])) for finding in shown.cases[0]["findings"]],
        has_maps=any(case["maps"] for case in shown.cases),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        content=_content(shown, split, pictures, root),
    )


def _read_cases(evaluation: Path, split: SplitResults, maps: Sequence[Row]) -> CaseList:
    of_split = [("split", "==", split.name)]
    predictions = read_own_parquet(evaluation / "predictions.parquet", filters=of_split)
    embeddings = read_own_parquet(evaluation / "embeddings.parquet", filters=of_split)
    return list_cases(predictions, embeddings, split.task, maps)


def _content(shown: CaseList, split: SplitResults, pictures: dict[str, Picture], root: str) -> str:
    """What the script shows, as JSON that no text of the data can end."""
    content = {
        "labels": split.task.labels.values,
        "noun": noun(split.task),
        "grades": grade_names(split.task),
        "columns": _titles(shown),
        "cases": [_with_picture(case, pictures, root) for case in shown.cases],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _with_picture(case: Case, pictures: dict[str, Picture], root: str) -> dict[str, Any]:
    shown = {name: value for name, value in case.items() if name != "image_id"}
    picture = pictures.get(case["image_id"], Picture("", NO_FILE))
    return shown | {"picture": picture.uri and root + picture.uri, "reason": picture.reason}


def _titles(shown: CaseList) -> dict[str, str]:
    names = {name: readable(name) for name in shown.columns}
    return {name: title[:1].upper() + title[1:] for name, title in names.items()}


def _choices(shown: CaseList, column: str) -> list[tuple[str, str]]:
    return [(value, value) for value in sorted({case["categories"][column] for case in shown.cases} - {""})]
