"""Tables with a column of images for each view, such as `img_path_ap`, read as one row for each image of a study."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
"""Images that no row number of the first CSV names are numbered from here: each has a number that looks like no row."""

NUMBER = re.compile(r"\b1\d{12}\b")


@dataclass(frozen=True)
class RowName:
    """row: of its CSV. image: what tells it from the row's others, such as `lateral`. csv: a second one's path."""

    row: int
    image: str = ""
    csv: str = ""

    def in_words(self, csv: str) -> str:
        """`3`, `3 (lateral)`, `3 of b.csv`, in a sentence about a row of `csv`."""
        image = f" ({self.image})" if self.image else ""
        return f"{self.row}{image}{f' of {self.csv}' if self.csv != csv and self.csv else ''}"


@dataclass(frozen=True)
class ExpandedTable:
    """table: one row per image, `img_path` and `view` (or `side`) filled in, and one `study_id` for each CSV row.

    Its index is the CSV row for the first image of each, and for others a number of its own. names: of these.
    """

    table: pd.DataFrame
    names: dict[int, RowName]

    def name(self, number: int) -> RowName:
        """Where the table's row `number` stands."""
        return self.names.get(number) or RowName(number)

    def in_words(self, message: str, csv: str = "") -> str:
        """The sentence with `3 (lateral)` in place of the number of a further image. csv: whose row it is about."""
        return NUMBER.sub(lambda found: self.name(int(found[0])).in_words(csv), message) if self.names else message


def view_columns(columns: Sequence[str]) -> dict[str, str]:
    """Columns of images to what their names say of them, `img_path_ap` to `ap`."""
    endings = {name: found[1] for name in columns if (found := IMAGE_COLUMN.fullmatch(str(name)))}
    if "img_path" not in columns:
        return endings
    return {name: ending for name, ending in endings.items() if ending.casefold() in VIEWS | SIDES}


def expand_views(table: pd.DataFrame) -> ExpandedTable:
    """One row for each image that a CSV row names; a table without such columns is returned as it is.

    table: text columns, indexed by spreadsheet row, or by CSV and row if several were joined; the first CSV is "". A
    row without any image keeps one, whose `img_path` is empty. Where `study_id` is missing, a placeholder or empty, the
    row is the study: `row 3`.
    """
    endings, is_joined = view_columns(list(table.columns)), table.index.nlevels > 1
    if not endings and not is_joined:
        return ExpandedTable(table, {})
    places = [RowName(row, csv=csv) for csv, row in (table.index if is_joined else [("", row) for row in table.index])]
    shared = table.drop(columns=list(endings))
    if endings:
        given = known_ids(shared["study_id"]) if "study_id" in shared else pd.Series("", shared.index)
        shared["study_id"] = given.where(given != "", [f"row {place.in_words('')}" for place in places])
        for name in {"img_path", *("side" if ending.casefold() in SIDES else "view" for ending in endings.values())}:
            if name not in shared:
                shared[name] = ""
    records: list[dict[Any, str]] = []
    names: dict[int, RowName] = {}
    index: list[int] = []
    cells = table[list(endings)].to_numpy().tolist()
    for place, record, paths in zip(places, shared.to_dict("records"), cells, strict=True):
        images = [("", record)] if record["img_path"].strip() else []
        for ending, path in zip(endings.values(), paths, strict=True):
            if path.strip():
                kind = "side" if ending.casefold() in SIDES else "view"
                images.append((ending, record | {"img_path": path, kind: ending}))
        for order, (name, image) in enumerate(images or [("", record)]):
            number = FIRST_NUMBER + len(index) if order or place.csv else place.row
            if number != place.row:
                names[number] = replace(place, image=name if order else "")
            records.append(image)
            index.append(number)
    expanded = pd.DataFrame(records, index=pd.Index(index, name="row"), columns=shared.columns, dtype=str)
    return ExpandedTable(expanded, names)
