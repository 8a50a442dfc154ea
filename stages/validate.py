"""Check the CSV and every image; stop before anything wrong or leaking gets past.

    python stages/validate.py
    python stages/validate.py --shard 2/4     (on each of 4 machines; then the first command, see docs/full-size.md)

Reads params.yaml, ${data.csv} and its images, and the text encoder's tokenizer. Writes data/validated/manifest.parquet
and reports/validation/ (issues.csv, metrics.json, rows.parquet; on errors only these). The report stage draws the page;
after errors this process becomes that stage, which draws it at once and fails too. A shard only inspects images and
keeps what it found in the store.
"""

import os
import sys
from pathlib import Path

from knee_siglip.core.cells import printable
from knee_siglip.core.errors import UserError
from knee_siglip.core.running import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params


def main() -> None:
    """Validate the rows that params.yaml names."""
    params = load_params()
    from knee_siglip.tables.shards import asked_shard
    from knee_siglip.validation.validate import inspect_shard

    shard = asked_shard(sys.argv[1:])
    if shard is None:
        validate_or_show_why_not(params)
    else:
        print(f"shard {shard}: {inspect_shard(params, shard)} images inspected")


def validate_or_show_why_not(params: Params) -> None:
    """Validate; on errors say so and draw the page, whose code is no dependency of this stage."""
    from knee_siglip.validation.validate import validate

    try:
        validate(params)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
        report = Path(__file__).with_name("report.py")
        os.execv(sys.executable, [sys.executable, str(report), "--failed-validation"])


if __name__ == "__main__":
    run_stage(main)
