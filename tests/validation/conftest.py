"""A project folder with a CSV and images that validate, and a way to break it."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip import encoders
from knee_siglip.core.errors import UserError
from knee_siglip.params.files import parse_params
from knee_siglip.validation.validate import validate

COLUMNS = ["img_path", "impression", "split", "patient_id", "kl_grade"]
SMALL_TEXT = Path(encoders.__path__[0]) / "small" / "text"
SPLITS = ["train", "train", "train", "val", "val", "test", "test"]


@dataclass
class Outcome:
    """What one run of validate left behind."""

    error: str
    manifest: pd.DataFrame | None
    issues: list[dict[str, str]]
    metrics: dict[str, Any]

    def of(self, check: str) -> list[dict[str, str]]:
        return [issue for issue in self.issues if issue["check"] == check]


@dataclass
class Project:
    """Rows as lists of cells; `run` writes them as data/train.csv and validates."""

    folder: Path
    rows: list[list[str]]
    header: list[str]

    def set(self, row: int, column: str, value: str) -> None:
        """Set a cell by spreadsheet row."""
        self.rows[row - 2][self.header.index(column)] = value

    def image(self, row: int) -> Path:
        return self.folder / "data" / self.rows[row - 2][0]

    def run(
        self, on_leak: str = "error", model: dict[str, Any] | None = None, sections: str = "impression", **data: Any
    ) -> Outcome:
        path = self.folder / "data" / "train.csv"
        if self.rows:
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([self.header, *self.rows])
        data = {"csv": "data/train.csv", "images": "data/images", **data}
        params = parse_params(
            {"data": data, "validate": {"on_leak": on_leak, "sections": sections}, "model": model or {}}
        )
        error, manifest = "", None
        try:
            manifest = validate(params, text_encoder=SMALL_TEXT)
        except UserError as failure:
            error = str(failure)
        report = self.folder / "reports" / "validation"
        with (report / "issues.csv").open(newline="", encoding="utf-8") as file:
            issues = list(csv.DictReader(file))
        return Outcome(error, manifest, issues, json.loads((report / "metrics.json").read_text()))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_core: None) -> Project:
    """Seven rows (spreadsheet rows 2-8): three train, two val, two test; every row its own patient and image."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(SPLITS):
        name = f"images/P{number:03d}_left.png"
        grey = rng.integers(0, 156, (12, 10))
        grey[:, 3:7] += 100  # bone is bright
        Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "data" / name)
        rows.append([name, f"Small joint effusion, film number {number}.", split, f"00{number}", str(number % 5)])
    return Project(tmp_path, rows, list(COLUMNS))


@pytest.fixture
def make_table() -> Callable[..., pd.DataFrame]:
    """A table as leakage.py takes it, from (split, patient, image) triples; rows are numbered from 2."""

    def make(*triples: tuple[str, str, str]) -> pd.DataFrame:
        table = pd.DataFrame(triples, columns=["split", "patient_id", "image_id"], dtype=str)
        names = [f"{number}.png" for number in range(len(table))]
        table = table.assign(img_path=names, image_file=names, flags="", pixel_id="")
        return table.set_index(pd.RangeIndex(2, len(table) + 2, name="row"))

    return make
