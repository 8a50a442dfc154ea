"""Draw the pages and gather the headline metrics from what validation, training and evaluation measured.

    dvc repro report

Reads reports/{validation,train,evaluation}/, and the images that the pages show. Writes reports/validation/index.html,
reports/evaluation/{index,cases}.html, the pictures in reports/evaluation/cases/, and reports/metrics.json; prints the
verdict. Needs no model.

    python stages/report.py --failed-validation

draws the validation page alone and fails: errors in the data stop the pipeline, and a page should show them first. Of a
`--queue` or `--temp` run, whose folder DVC deletes, the page is kept in the store.
"""

import sys
from pathlib import Path

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import link_or_copy
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of


def main() -> None:
    """Write the report of what was done so far."""
    params = load_params()
    if "--failed-validation" in sys.argv:
        fail_with_page(params)
    from knee_siglip.report.write import ReportFiles, write_report

    files = ReportFiles(paths.VALIDATION_REPORT, paths.TRAIN_REPORT, paths.EVALUATION_REPORT, paths.HEADLINE_METRICS)
    print(write_report(params, files))


def fail_with_page(params: Params) -> None:
    """Draw the validation page of what stopped the pipeline, where it outlives the run.

    Raises:
        UserError: always.
    """
    from knee_siglip.report.validation.page import write_validation_page
    from knee_siglip.validation.outputs import ISSUES

    page = write_validation_page(paths.VALIDATION_REPORT, Path(params.data.csv), task_of(params))
    if page is None:
        raise UserError("validation failed before it checked anything")
    lasting = paths.lasting_report(page.parent)
    if lasting != page.parent:
        for name in (page.name, ISSUES):
            link_or_copy(page.with_name(name), lasting / name)
    raise UserError(f"validation failed; see {lasting / page.name}")


if __name__ == "__main__":
    run_stage(main)
