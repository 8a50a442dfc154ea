"""Charts of what each split holds, computed from the table of the checks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from knee_siglip.report.html.charts import Chart, Series, bars, steps
from knee_siglip.report.html.numbers import number
from knee_siglip.tables.manifest import SPLITS
from knee_siglip.task.task import Task
from knee_siglip.validation.splits.cohort import text_words

BINS = 30
CATEGORIES_SHOWN = 12
VALUES_SHOWN = 6
"""Distinct numbers of which each gets a bar; more make a histogram."""

TAIL = 0.005
"""Share of the values at either end that may be gathered in the outermost bin: one image of 30,000 px must not
squeeze all others into one bar."""

CATEGORIES = {
    "side": "Side",
    "view": "View",
    "size": "Image size in pixels",
    "kind": "File format",
}
NUMBERS = {
    "text_words": "Length of the text in words",
    "width": "Image width in pixels",
    "height": "Image height in pixels",
    "mean": "Mean grey (0 black, 255 white)",
    "std": "Contrast (standard deviation of the greys)",
    "file_bytes": "File size in bytes",
}
OF_ROWS = ("side", "view", "text_words")
"""Beside the labels, known for every row; the other features for readable images alone."""

EVERY_SIZE = {"width", "height"}
"""Left out where there are so few sizes that each has a bar of its own."""


def distribution_charts(table: pd.DataFrame, task: Task) -> list[Chart]:
    """A chart of every feature of which there are two values or more. table: as `write_page` gets it."""
    rows = table[table["split"].isin(SPLITS)]
    if rows.empty:
        return []
    sizes = rows["width"].astype(str) + " × " + rows["height"].astype(str)
    rows = rows.assign(size=sizes, text_words=text_words(rows))
    readable = rows[rows["image_id"] != ""]
    few_sizes = readable["size"].nunique() <= CATEGORIES_SHOWN
    label = {task.labels.column: task.label_short} if task.labels else {}
    charts = []
    for feature, title in (label | CATEGORIES | NUMBERS).items():
        if feature not in rows or feature in (EVERY_SIZE if few_sizes else {"size"}):
            continue
        known = rows if feature in (*label, *OF_ROWS) else readable
        if feature in NUMBERS:
            charts.append(_numbers(title, known, feature))
        else:
            charts.append(_categories(title, known, feature, feature in label))
    return [chart for chart in charts if chart is not None]


def _categories(title: str, rows: pd.DataFrame, feature: str, is_label: bool) -> Chart | None:
    """Shares of the most frequent values; the rest counts as `other`."""
    values = rows[feature].astype("string").str.strip()
    unknown = int(values.isna().sum()) if is_label else 0
    values = values.dropna() if unknown else values.fillna("")
    values = values if feature in ("kind", "size") else values.str.lower()
    values = values.mask(values == "", "unknown")
    counts = values.value_counts()
    if len(counts) < 2:
        return None
    ranked = sorted(counts.index, key=lambda value: (-counts[value], value))
    kept = ranked[:CATEGORIES_SHOWN]
    values = values.where(values.isin(kept), "other")
    labels = sorted(kept) + (["other"] if len(ranked) > len(kept) else [])
    note = f"{len(ranked):,} values; the rarer ones are grouped as other." if len(ranked) > len(kept) else ""
    note = f"Rows without a value are excluded ({unknown:,})." if unknown else note
    svg = bars(f"{title}: share by split", labels, _shares(values, rows.loc[values.index, "split"], labels))
    return Chart(title, svg, note)


def _numbers(title: str, rows: pd.DataFrame, feature: str) -> Chart | None:
    """Few distinct values as bars, many as outlines of histograms."""
    values = pd.to_numeric(rows[feature], errors="coerce").astype("float64")
    values = values[np.isfinite(values)]
    splits = rows.loc[values.index, "split"]
    distinct = np.unique(values)
    if len(distinct) < 2:
        return None
    if len(distinct) <= VALUES_SHOWN:
        labels = [number(value) for value in distinct]
        return Chart(title, bars(f"{title}: share by split", labels, _shares(values.map(number), splits, labels)))
    edges = _edges(values.to_numpy())
    inside = values.clip(edges[0], edges[-1])
    series = [
        Series(split, split, np.histogram(inside[splits == split], edges)[0] / max(1, (splits == split).sum()))
        for split in SPLITS
    ]
    beyond = values.min() < edges[0] or values.max() > edges[-1]
    note = f"From {number(float(values.min()))} to {number(float(values.max()))}"
    note += "; the outermost bins include values beyond them." if beyond else "."
    return Chart(title, steps(f"{title}: histogram by split", edges, series), note)


def _edges(values: np.ndarray) -> np.ndarray:
    """(K + 1,) edges of equal bins between the tails; of whole numbers each bin holds equally many."""
    low, high = np.quantile(values, [TAIL, 1 - TAIL])
    if high <= low:
        low, high = values.min(), values.max()
    if np.all(values == np.round(values)):
        width = max(1, int(np.ceil((high - low + 1) / BINS)))
        return np.arange(np.floor(low), high + width + 0.5, width) - 0.5
    return np.linspace(low, high, BINS + 1)


def _shares(values: pd.Series, splits: pd.Series, labels: Sequence[str]) -> list[Series]:
    series = []
    for split in SPLITS:
        counts = values[splits == split].value_counts()
        series.append(
            Series(split, split, [float(counts.get(label, 0)) / max(1, int(counts.sum())) for label in labels])
        )
    return series
