"""The report: pages and headline metrics, from what other stages measured and left on disk. Needs no model."""

from dataclasses import dataclass, replace
from pathlib import Path

from knee_siglip.core.metrics_file import read_json, write_metrics
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.report.cases.page import write_case_browsers
from knee_siglip.report.evaluation.diagnosis import remarks
from knee_siglip.report.evaluation.page import write_page
from knee_siglip.report.evaluation.results import EvaluationResults, read_results
from knee_siglip.report.evaluation.verdict import verdict
from knee_siglip.report.headline import headline_metrics
from knee_siglip.report.html.numbers import plural
from knee_siglip.report.validation.page import write_validation_page
from knee_siglip.tables.manifest import read_own_parquet
from knee_siglip.validation.outputs import ROWS


@dataclass(frozen=True)
class ReportFiles:
    """The folders of validation, training and evaluation, which the first and the last get a page in.

    headline: the JSON file of the headline metrics.
    """

    validation: Path
    training: Path
    evaluation: Path
    headline: Path


def write_report(params: Params, files: ReportFiles) -> str:
    """Write both pages, the case browser and the headline metrics; returns the verdict as a sentence for the terminal.

    Trackers get no page: to open a run in them takes longer than all of this, and the page shows patients.

    Raises:
        UserError: nothing was evaluated.
    """
    write_validation_page(files.validation, Path(params.data.csv), task_of(params))
    validation = read_json(files.validation / "metrics.json")
    results = replace(read_results(files.evaluation, files.training / "live"), validation=validation)
    page = files.evaluation / "index.html"
    write_page(page, results)
    write_case_browsers(results, _image_files(files.validation))
    evaluation = read_json(files.evaluation / "metrics.json")
    training = read_json(files.training / "metrics.json")
    write_metrics(files.headline, headline_metrics(evaluation, training, validation, results.shown.task))
    return spoken_verdict(results, page)


def spoken_verdict(results: EvaluationResults, page: Path) -> str:
    """The verdict, the gravest remark, and where to read more."""
    said = [verdict(results.shown).headline]
    found = remarks(results)
    said += [f"{remark.sentence} {remark.advice}" for remark in found[:1]]
    more = f"{plural(len(found) - 1, 'more remark')} and all" if len(found) > 1 else "All"
    return f"Verdict: {' '.join(said)} {more} metrics: {page}"


def _image_files(validation: Path) -> dict[str, str]:
    """image_id to a file that has its bytes, from what validation wrote; empty where it wrote nothing."""
    if not (path := validation / ROWS).is_file():
        return {}
    rows = read_own_parquet(path, columns=["image_id", "image_file"])
    return dict(zip(rows["image_id"], rows["image_file"], strict=True))
