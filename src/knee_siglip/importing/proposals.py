"""What the columns of an unknown table mean, by their names and their contents."""

import re
import unicodedata
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing.columns import ROW, SIDES, VIEWS, WORDS, WORKING, grade_of
from knee_siglip.importing.files import Files, common_length
from knee_siglip.importing.layout import Layout, Texts
from knee_siglip.importing.outcome import Outcome
from knee_siglip.tables.manifest import SPLITS
from knee_siglip.tables.views import VIEWS as NAMED_VIEWS
from knee_siglip.validation.rows import SPLIT_SYNONYMS

NAMES: dict[str, list[str]] = WORDS["columns"]
"""Ours to how others name them, letters and digits only, the best first."""

LOOKED_AT = 300
"""Distinct cells of a column that are looked at."""

FOUND_IMAGES, FITTING_VALUES = 0.5, 0.9
"""Shares of those from which a column names images, or holds what it must."""

CODED = ("split", "side", "kl_grade")
"""Ours whose values must fit."""

SHOWN_VALUES = 3

WORDS_OF_TEXT = 4
"""Mean number of words from which a column without a known name may be an impression."""


def propose(table: pd.DataFrame, outcome: Outcome, given: dict[str, str]) -> Layout:
    """A layout for a table; given: columns that are known, `img_path` among them.

    A column that is named like one of ours and holds other values is carried, and told.
    """
    chosen = dict(given)
    for name in ("split", "patient_id", "study_id", "side", "view", "kl_grade"):
        if name in chosen:
            continue
        if source := _by_name(table, name, set(chosen.values())):
            chosen[name] = source
            outcome.mapped(name, source, "its name and its values")
        elif name in CODED and (others := _named(table, name, set(chosen.values()))):
            shown = ", ".join(map(repr, _sample(table[others[0]])[:SHOWN_VALUES]))
            if shown:
                outcome.note(f"column {others[0]!r} is named like {name} and holds other values, {shown}: not mapped")
    texts = [chosen.pop("impression")] if "impression" in chosen else text_columns(table, set(chosen.values()))
    if "impression" not in given and texts:
        outcome.mapped("impression", ", else ".join(texts), "its name" if _key_in(texts[0]) else "it holds sentences")
    columns = {name: source for name, source in chosen.items() if name != "img_path"}
    composed = None
    if not texts and "kl_grade" in columns:
        composed = Texts(column="kl_grade", texts=WORDS["grade_texts"])
    return Layout(title="a table", image=chosen["img_path"], columns=columns, impression=texts, texts=composed)


def image_column(table: pd.DataFrame, files: Files) -> str:
    """The column whose cells name most images; of equals the one with the best name.

    Raises:
        UserError: none names half of its images.
    """
    shares = {name: _share_of_images(table[name], files) for name in table.columns if name not in WORKING}
    ranks = {name: _rank(name, "img_path") for name in shares}
    best = max(shares, key=lambda name: (shares[name], -ranks[name]))
    if shares[best] >= FOUND_IMAGES:
        return best
    named = [name for name in shares if ranks[name] < len(NAMES["img_path"])]
    example = ""
    if named:
        name = min(named, key=ranks.__getitem__)
        example = f"; {name!r} has cells such as {next(iter(_sample(table[name])), '')!r}"
    raise UserError(
        f"no column of {table.iloc[0][WORKING[0]] if len(table) else 'the table'} names images below {files.root} "
        f"({len(files.images):,} images there){example}; name their folder with --images, or the column with "
        f"--map img_path=COLUMN; the columns are {', '.join(shares)}"
    )


def columns_by_view(table: pd.DataFrame, files: Files) -> dict[str, dict[str, str]]:
    """Columns that each name an image of the row, to what their names tell: `LeftLateral` to its side and view.

    None where fewer than two columns name images, or a name tells neither, or two tell the same.
    """
    names = [name for name in table.columns if name not in WORKING]
    told = {name: _view_and_side(name) for name in names if _share_of_images(table[name], files) >= FOUND_IMAGES}
    distinct = {tuple(words.items()) for words in told.values() if words}
    return told if 2 <= len(told) == len(distinct) else {}


def unroll(table: pd.DataFrame, columns: dict[str, dict[str, str]]) -> pd.DataFrame:
    """A row for each image of a row, as `img_path`, `view` and `side`; without a column of studies the row is one.

    A row without images stays one.
    """
    named = table[list(columns)].apply(lambda cells: cells.str.strip() != "")
    shared = table.drop(columns=list(columns))
    shared = shared.rename(columns={name: f"source_{name}" for name in ("img_path", "view", "side") if name in shared})
    if not _by_name(shared, "study_id", set()):
        shared["study_id"] = "row " + shared[ROW]
    parts = []
    for place, (name, told) in enumerate(columns.items()):
        chosen = named[name] | (~named.any(axis=1) if place == 0 else False)
        parts.append(shared[chosen].assign(img_path=table.loc[chosen, name], **told))
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True).fillna("")


def _view_and_side(name: str) -> dict[str, str]:
    """What a column's name tells of its images: of `img_path_AP` and `apImage` the view ap."""
    words = [word.casefold() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) if len(word) > 1]
    views = [VIEWS.get(word, word) for word in words if word in NAMED_VIEWS or word in VIEWS]
    sides = [SIDES[word] for word in words if word in SIDES]
    return ({"view": "_".join(views)} if views else {}) | ({"side": sides[0]} if sides else {})


def absolute_root(table: pd.DataFrame) -> Path | None:
    """The folder that holds the images which the table names by absolute paths; None where it names none."""
    for name in table.columns:
        cells = [cell for cell in _sample(table[name]) if cell.startswith("/") and Path(cell).is_file()]
        if cells and len(cells) >= FOUND_IMAGES * len(_sample(table[name])):
            folders = [Path(cell).parent.parts for cell in table[name] if cell.startswith("/")]
            common = Path(*folders[0][: common_length(folders)])
            return common if len(common.parts) > 1 else None
    return None


def _share_of_images(cells: pd.Series, files: Files) -> float:
    sample = _sample(cells)
    return sum(name is not None for name in files.locate(sample)) / max(1, len(sample))


def _sample(cells: pd.Series) -> list[str]:
    distinct = [cell for cell in cells.unique() if cell.strip()]
    step = max(1, len(distinct) // LOOKED_AT)
    return distinct[::step][:LOOKED_AT]


def _by_name(table: pd.DataFrame, ours: str, taken: set[str]) -> str | None:
    """The column with the best of the known names whose values fit."""
    return next((name for name in _named(table, ours, taken) if _fits(ours, table[name])), None)


def _named(table: pd.DataFrame, ours: str, taken: set[str]) -> list[str]:
    """The columns with one of the known names, the best first."""
    named = [name for name in table.columns if name not in (*taken, *WORKING) and _rank(name, ours) < len(NAMES[ours])]
    return sorted(named, key=lambda name: _rank(name, ours))


def _fits(ours: str, cells: pd.Series) -> bool:
    sample = [cell.strip().casefold() for cell in _sample(cells)]
    if not sample:
        return False
    if ours == "split":
        return all(cell in SPLIT_SYNONYMS or cell in SPLITS for cell in sample)
    if ours == "side":
        return sum(cell.rstrip(".") in SIDES for cell in sample) >= FITTING_VALUES * len(sample)
    if ours == "kl_grade":
        return sum(grade_of(cell) != "" for cell in sample) >= FITTING_VALUES * len(sample)
    return ours != "patient_id" or _key(str(cells.name)) != "id" or cells.nunique() < len(cells)  # else of the row


def text_columns(table: pd.DataFrame, taken: set[str]) -> list[str]:
    """The column with the impression, and with the findings that stand in where it is empty."""
    free = [name for name in table.columns if name not in (*taken, *WORKING) and _sample(table[name])]
    named = sorted((name for name in free if _key_in(name)), key=lambda name: _rank(name, "impression"))
    sure = NAMES["impression"][: NAMES["impression"].index("report")]
    worded = [name for name in named if _key(name) in sure or _words(table[name]) >= 2] or named[:1]
    if worded:
        reports = [
            name for name in worded[1:] if _key(name) in ("findings", "report", "hallazgos", "achados", "befund")
        ]
        return [worded[0], *reports[:1]]
    sentences = {name: _words(table[name]) for name in free}
    best = max(sentences, key=sentences.__getitem__, default=None)
    return [best] if best is not None and sentences[best] >= WORDS_OF_TEXT else []


def _words(cells: pd.Series) -> float:
    sample = _sample(cells)
    return sum(len(re.findall(r"[^\W\d_]{2,}", cell)) for cell in sample) / max(1, len(sample))


def _key(name: str) -> str:
    """Letters and digits without accents: `Proyección` is `proyeccion`, `Nº` is `no`."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode())


def _key_in(name: str) -> bool:
    return _key(name) in NAMES["impression"]


def _rank(name: str, ours: str) -> int:
    """Position among the known names; their number where it is none of them."""
    names = NAMES[ours]
    return names.index(_key(name)) if _key(name) in names else len(names)
