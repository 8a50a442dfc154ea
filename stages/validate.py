"""Check the CSV and every image; stop before anything wrong or leaking gets past.

    python stages/validate.py

Reads params.yaml, ${data.csv} and its images, and the text encoder's tokenizer. Writes data/validated/manifest.parquet
and reports/validation/ (issues.csv, metrics.json, rows.parquet; on errors only these). The report stage draws the page.
"""

from knee_siglip.core.errors import run_stage
from knee_siglip.params.files import load_params
from knee_siglip.validation.validate import validate


def main() -> None:
    """Validate the rows that params.yaml names."""
    validate(load_params())


if __name__ == "__main__":
    run_stage(main)
