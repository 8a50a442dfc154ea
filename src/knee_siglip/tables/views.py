"""Tables with a column of images for each view, such as `img_path_ap`, read as one row for each image of a study."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from knee_siglip.tables.ids import known_ids

IMAGE_COLUMN = re.compile(r"img_path_(\w+)")

VIEWS = frozenset(
    {
        *("ap", "pa", "frontal", "lateral", "lat", "ll", "oblique", "axial", "skyline", "sunrise", "merchant"),
        *("patellar", "rosenberg", "tunnel", "notch", "weightbearing", "standing", "flexed", "long_leg", "frog_leg"),
    }
)
SIDES = frozenset({"left", "right"})
"""With `VIEWS`: what names images beside a column `img_path`, where `img_path_original` may be anything."""

FIRST_NUMBER = 10**12
"""Further images of a CSV row are numbered from here: every image has its own number, and none looks like a row's."""


@dataclass(frozen=True)
class ExpandedTable:
    """table: one row per image, `img_path` and `view` (or `side`) filled in, and one `study_id` for each CSV row.

    Its index is the CSV row for the first image of each, and for the others a number of its own. csv_rows: these
    numbers to the CSV's rows. names: the same to what tells the image from the others of its row, such as `lateral`.
    """

    table: pd.DataFrame
    csv_rows: dict[int, int]
    names: dict[int, str]

    def in_words(self, message: str) -> str:
        """The sentence with `3 (lateral)` in place of the number of a further image."""
        number = rf"\b{str(FIRST_NUMBER)[0]}\d{{{len(str(FIRST_NUMBER)) - 1}}}\b"
        return re.sub(number, lambda found: self._name(int(found[0])), message) if self.names else message

    def _name(self, number: int) -> str:
        return f"{self.csv_rows[number]} ({self.names[number]})" if number in self.names else str(number)


def view_columns(columns: Sequence[str]) -> dict[str, str]:
    """Columns of images to what their names say of them, `img_path_ap` to `ap`."""
    endings = {name: found[1] for name in columns if (found := IMAGE_COLUMN.fullmatch(str(name)))}
    if "img_path" not in columns:
        return endings
    return {name: ending for name, ending in endings.items() if ending.casefold() in VIEWS | SIDES}


def expand_views(table: pd.DataFrame) -> ExpandedTable:
    """One row for each image that a CSV row names; a table without such columns is returned as it is.

    table: text columns, indexed by spreadsheet row. A row without any image keeps one, whose `img_path` is empty.
    Where `study_id` is missing, a placeholder or empty, the row is the study: `row 3`.
    """
    endings = view_columns(list(table.columns))
    if not endings:
        return ExpandedTable(table, {}, {})
    shared = table.drop(columns=list(endings))
    given = known_ids(shared["study_id"]) if "study_id" in shared else pd.Series("", shared.index)
    shared["study_id"] = given.where(given != "", [f"row {row}" for row in shared.index])
    for name in {"img_path", *("side" if ending.casefold() in SIDES else "view" for ending in endings.values())}:
        if name not in shared:
            shared[name] = ""
    records: list[dict[Any, str]] = []
    index: list[int] = []
    csv_rows: dict[int, int] = {}
    names: dict[int, str] = {}
    cells = table[list(endings)].to_numpy().tolist()
    for row, record, paths in zip(shared.index.tolist(), shared.to_dict("records"), cells, strict=True):
        images = [("", record)] if record["img_path"].strip() else []
        for ending, path in zip(endings.values(), paths, strict=True):
            if path.strip():
                kind = "side" if ending.casefold() in SIDES else "view"
                images.append((ending, record | {"img_path": path, kind: ending}))
        for place, (name, image) in enumerate(images or [("", record)]):
            number = FIRST_NUMBER + len(index) if place else row
            records.append(image)
            index.append(number)
            if place:
                csv_rows[number], names[number] = row, name
    expanded = pd.DataFrame(records, index=pd.Index(index, name="row"), columns=shared.columns, dtype=str)
    return ExpandedTable(expanded, csv_rows, names)
