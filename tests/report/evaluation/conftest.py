"""An evaluation as files: `results/` is what the evaluate stage wrote, with everything measured on forty images."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.metrics_file import read_json, write_json
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.report.evaluation.page import write_page
from knee_siglip.report.evaluation.results import EvaluationResults, read_results
from pages import Page

RESULTS = Path(__file__).with_name("results")


class Evaluation:
    """A copy of `results/` with its pictures and curves, whose files a test may change before the page is drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.live = folder / "evaluation", folder / "live"
        self.page_file = self.folder / "index.html"
        shutil.copytree(RESULTS, self.folder)
        for example in (example for kind in self.json("examples").values() for example in kind):
            path = self.folder / example["picture"]
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB" if "figures" in path.parts else "L", (64, 64), 90).save(path)
        for name in ("train", "val"):
            curves = self.live / "plots" / "metrics" / name
            curves.mkdir(parents=True)
            (curves / "loss.tsv").write_text("step\tloss\n25\t3.5\n50\t2.5\n75\tnan\n10")

    def json(self, name: str) -> dict[str, Any]:
        """Read facts.json, examples.json or metrics.json."""
        return read_json(self.folder / f"{name}.json")

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write one of them."""
        write_json(self.folder / f"{name}.json", content)

    def set_metrics(self, changed: dict[str, float]) -> None:
        """Change metrics of the test split by their dotted names."""
        self.write("metrics", {"test": nest(flatten(self.json("metrics")["test"]) | changed)})

    def set_cells(self, table: str, rows: slice, **cells: Any) -> None:
        """Change cells of some rows of a table."""
        path = self.folder / "tables" / f"{table}.csv"
        content = pd.read_csv(path, dtype=object)
        for column, value in cells.items():
            content.loc[content.index[rows], column] = value
        content.to_csv(path, index=False)

    def results(self) -> EvaluationResults:
        """Read it."""
        return read_results(self.folder, self.live)

    def page(self) -> Page:
        """Draw the page of it."""
        write_page(self.page_file, self.results())
        return Page(self.page_file.read_text(encoding="utf-8"))


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return Evaluation(tmp_path)
