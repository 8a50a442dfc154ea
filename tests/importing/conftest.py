"""A folder with images, and the command that imports."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from importing_layouts import picture
from knee_siglip.tables.table import read_table

NAMES = [f"{patient}_{side}.png" for patient in range(100, 106) for side in "LR"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder `data` with twelve images `data/scans/100_L.png` ...; returns `data`."""
    for name in NAMES:
        picture(tmp_path / "data/scans" / name)
    return tmp_path / "data"


@pytest.fixture
def run_import(tmp_path: Path, knee_siglip: Callable[..., tuple[int, str, str]]) -> Callable[..., pd.DataFrame]:
    """Imports into rows.csv and returns its table; the report lies beside it."""

    def run(*arguments: str | Path) -> pd.DataFrame:
        code, printed, errors = knee_siglip(
            "import", arguments[0], tmp_path / "rows.csv", *arguments[1:], "--overwrite"
        )
        assert code == 0, printed + errors
        return read_table(tmp_path / "rows.csv")

    return run
