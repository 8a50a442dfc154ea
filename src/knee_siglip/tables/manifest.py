"""The manifest: the checked table of all rows, from which every later stage reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.core.errors import REFUSALS, UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.core.paths import MANIFEST
from knee_siglip.tables.ids import id_keys

SPLITS = ("train", "val", "test")

EXTERNAL = "external"
"""A second test set, which nothing is learnt or chosen from; its rows have a manifest of their own."""

ALL_SPLITS = (*SPLITS, EXTERNAL)

MADE_COLUMNS = ("image_file", "image_id", "width", "height", "bits", "text", "flags")
"""What validation adds to the input's columns (and `patient_id`; it and `study_id` are empty where unknown).

image_file: path usable from the project's root; image_id: sha256 of the file; width, height, bits: of the upright
original; text: the normalised impression; flags: what was noticed and kept, joined by `;`.
"""

TOKENS_COLUMN = "text_tokens"
"""Made too, if a tokenizer is at hand: the text's length in tokens, with the end token."""

ALTERNATIVES_COLUMN = "text_alternatives"
"""JSON object per row: each text that could have been written about this image, with its probability. Only a program
that draws images can know it.
"""


def read_own_parquet(path: Path, **options: Any) -> pd.DataFrame:
    """A table that a stage of ours wrote; options: of `pandas.read_parquet`.

    Raises:
        UserError: it is damaged. OSError: the system refuses, which is no fault of the file.
    """
    try:
        return pd.read_parquet(path, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise
        what = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged or no such table ({what}); remove it, then run dvc repro") from None


def read_manifest(path: Path = MANIFEST) -> pd.DataFrame:
    """Rows in the input's order; input columns as text, labels that are numbers as nullable Int64.

    Raises:
        UserError: there is no manifest, or the file is none.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; run the validate stage first: dvc repro validate")
    manifest = read_own_parquet(path)
    missing = [name for name in ("img_path", "split", *MADE_COLUMNS) if name not in manifest.columns]
    if missing:
        raise UserError(f"{path} is no manifest: it lacks {', '.join(missing)}; run dvc repro validate")
    return manifest


def write_manifest(manifest: pd.DataFrame, path: Path = MANIFEST) -> None:
    """Write the manifest; equal content gives equal bytes."""
    with atomic_file(path) as file:
        manifest.reset_index(drop=True).to_parquet(file, index=False)


def count_drawn(rows: pd.DataFrame) -> int:
    """How many of the rows show images that a program drew: those with alternatives."""
    return int(rows[ALTERNATIVES_COLUMN].fillna("").ne("").sum()) if ALTERNATIVES_COLUMN in rows else 0


def number_groups(table: pd.DataFrame, column: str) -> np.ndarray:
    """(N,) integers from 0, equal for rows whose id in `column` is one by `id_key`; a row without is its own group."""
    if column not in table:
        return np.arange(len(table))
    numbers: dict[str | int, int] = {}
    names = id_keys(table[column]).tolist()
    return np.array([numbers.setdefault(name or row, len(numbers)) for row, name in enumerate(names)], dtype=np.int64)


def add_flag(table: pd.DataFrame, rows: pd.Index, flag: str) -> pd.DataFrame:
    """The table with `flag` added to the flags of its rows `rows`."""
    flags = table["flags"].copy()
    flags.loc[rows] = flags.loc[rows].map(lambda old: f"{old};{flag}" if old else flag)
    return table.assign(flags=flags)
