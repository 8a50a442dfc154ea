"""Figures as a reader wants them: `kl_grades.0` as `KL grades: 0`, 0.99056 as 0.991, nested dicts as flat tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = {
    "ap": "AP",
    "auroc": "AUROC",
    "bits": "bits per sample",
    "ci": "95 % interval:",
    "cramers": "Cramer's",
    "id": "ID",
    "kind": "file format",
    "kl": "KL",
    "ks": "Kolmogorov-Smirnov",
    "pa": "PA",
    "std": "standard deviation",
    "v": "V",
}
"""Words of metric names that read differently in a sentence."""

NOTHING = "–"

Path = tuple[str, ...]
"""Of keys, from the outermost to the innermost."""


@dataclass(frozen=True)
class Group:
    """Rows of a table under a heading (empty for the first ones): (name, a cell of text for each column)."""

    title: str
    rows: list[tuple[str, list[str]]]


def readable(name: str) -> str:
    """`text_words` to `text words`, `kl_grade` to `KL grade`."""
    return " ".join(NAMES.get(word, word) for word in str(name).split("_"))


def number(value: Any) -> str:
    """Three digits or so, thousands set apart; a dash where there is no number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or not isinstance(value, (int, float)):
        return NOTHING if value is None else str(value)
    if not math.isfinite(value):
        return NOTHING
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return "< 0.001" if value > 0 else "> -0.001"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def leaves(nested: Mapping[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path of keys, value) of everything in a nested dict that is no dict, in order."""
    for key, value in nested.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        else:
            yield path, value


def innermost(nested: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """(path of keys, the values under it): the rows of a table whose columns are the innermost keys."""
    rows: dict[Path, dict[str, Any]] = {}
    for path, value in leaves(nested):
        rows.setdefault(path[:-1], {})[path[-1]] = value
    return list(rows.items())


def side_by_side(columns: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """Nested figures of several splits as one table.

    First what stands at the top; then a group of rows for each dict of counts (grades, sides), with their shares; then
    every dict of statistics as one row, `text words: mean / median / max`.
    """
    cells = [dict(leaves(nested)) for nested in columns.values()]
    families: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(path for values in cells for path in values):
        families.setdefault(path[:-1], []).append(path)
    top = [(readable(path[-1]), [number(values.get(path)) for values in cells]) for path in families.pop((), [])]
    groups, statistics = [Group("", top)] if top else [], []
    for title, family in families.items():
        known = [values[path] for path in family for values in cells if path in values]
        if all(type(value) is int for value in known):
            rows = [(readable(path[-1]), [_count(path, family, values) for values in cells]) for path in family]
            groups.append(Group(_title(title), rows))
        else:
            name = f"{_title(title)}: {' / '.join(readable(path[-1]) for path in family)}"
            statistics.append((name, [" / ".join(number(values.get(path)) for path in family) for values in cells]))
    return [*groups, Group("Measures", statistics)] if statistics else groups


def _title(path: Path) -> str:
    return ": ".join(map(readable, path))


def _count(path: Path, family: Sequence[Path], values: Mapping[Path, Any]) -> str:
    """A count and its share of the family's."""
    if path not in values:
        return NOTHING
    return f"{number(values[path])} ({percent(values[path] / max(1, sum(values.get(other, 0) for other in family)))})"


def plural(count: float, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """`12 %`; below ten per cent with a decimal where it is not whole."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    hundredths = 100 * share
    whole = abs(hundredths - round(hundredths)) < 0.05 or hundredths >= 10
    return f"{hundredths:.0f} %" if whole else f"{hundredths:.1f} %"
