"""The validation page: the verdict, what was found with pictures of it, and what the splits hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from knee_siglip.core.metrics_file import read_json
from knee_siglip.report.html.charts import meter
from knee_siglip.report.html.numbers import innermost, number, percent, plural, readable, side_by_side
from knee_siglip.report.html.pictures import load_pictures
from knee_siglip.report.html.rendering import write_html
from knee_siglip.report.validation.distributions import distribution_charts
from knee_siglip.report.validation.glossary import GLOSSARY, NEEDS_TOKENIZER, Entry
from knee_siglip.report.validation.pictured_issues import cards, example_spots, group_issues
from knee_siglip.tables.manifest import SPLITS, read_own_parquet
from knee_siglip.task.task import Task
from knee_siglip.validation.issue import Issue
from knee_siglip.validation.outputs import METRICS, ROWS, read_issues
from knee_siglip.validation.splits.shift import KS_FLOOR, P_VALUE, V_FLOOR
from knee_siglip.validation.splits.shortcuts import GRADE_THRESHOLD, SPLIT_THRESHOLD
from knee_siglip.validation.texts.privacy import personal_data

TEXTS_SHOWN = 15
TEXT_EXAMPLES = 6
SEED = 0

COLUMN_NAMES = {"auroc": "mean AUROC", "highest": "best class", "highest_low": "best class, lower bound"}

SHIFT_FLOORS = {"ks": KS_FLOOR, "cramers_v": V_FLOOR}

TILES = {
    "rows": ("row", ""),
    "patients": ("patient", ""),
    "images": ("image", ""),
    "distinct_texts": ("distinct text", ""),
    "errors": ("error", "error"),
    "warnings": ("warning", "warning"),
    "dropped": ("dropped row", "dropped"),
}

SHIFT = (
    "Distance of val and test from train: 0 means identical, 1 nothing in common. A warning needs a difference that is "
    "both large and significant (small corrected p)."
)
SHORTCUTS = (
    "How well the {label} or split of unseen patients can be predicted from file properties alone, without looking at "
    "what the image shows: AUROC 0.5 is chance, 1 is perfect. The warning uses the lower bound of the best class."
)

HIDDEN = "(hidden: may contain personal data)"


def write_validation_page(folder: Path, csv: Path, task: Task) -> Path | None:
    """Write index.html beside what validation left in `folder`; None where it left nothing.

    csv: the file that was validated, whose folder its images' paths are relative to.
    """
    if not (folder / ROWS).is_file():
        return None
    path = folder / "index.html"
    write_page(path, csv, read_own_parquet(folder / ROWS), read_issues(folder), read_json(folder / METRICS), task)
    return path


def write_page(
    path: Path, csv: Path, table: pd.DataFrame, issues: Sequence[Issue], metrics: Mapping[str, Any], task: Task
) -> None:
    """Write the page: one HTML file that asks for nothing else, and whose bytes depend on its content alone.

    csv: shown as given; table: rows.parquet, whose labels, side and view are optional, empty where the CSV could not be
    read; metrics: the nested figures of metrics.json, of which none need be there.
    """
    table = table if table.empty else _without_personal_data(table)
    groups = group_issues(issues, table, csv, task)
    examples = example_spots(table, task)
    wanted = [*(spots for group in groups for spots in group["spots"]), *examples.values()]
    pictures = load_pictures(spot.file for spots in wanted for spot in spots if not spot.absent)
    splits = list(metrics.get("splits", {})) or list(SPLITS)
    write_html(
        path,
        "knee_siglip.report.validation",
        "validation.html.j2",
        csv=str(csv),
        verdict=_verdict(table, issues, metrics),
        tiles=_tiles(metrics),
        groups=[{**group, "pictures": [cards(spots, pictures) for spots in group["spots"]]} for group in groups],
        examples={split: cards(spots, pictures) for split, spots in examples.items()},
        splits=splits,
        styles={split: split for split in SPLITS},
        split_groups=side_by_side(_singular(metrics.get("splits", {}), task)),
        charts=distribution_charts(table, task),
        comparisons=list(_comparisons(metrics, task)),
        texts=_frequent_texts(table, splits),
        text_examples=_text_examples(table),
        text_figures=_text_figures(metrics),
        silent=_silent(issues) if len(table) else [],
    )


def _singular(splits: Mapping[str, Mapping[str, Any]], task: Task) -> dict[str, dict[str, Any]]:
    """The counts of each label under its column's own name."""
    column = task.labels.column
    return {
        split: {column if name == f"{column}s" else name: value for name, value in counts.items()}
        for split, counts in splits.items()
    }


def _verdict(table: pd.DataFrame, issues: Sequence[Issue], metrics: Mapping[str, Any]) -> dict[str, str]:
    """tone: class of the style sheet; headline and advice: a sentence each."""
    severities = [issue.severity for issue in issues]
    errors, warnings, dropped = (severities.count(name) for name in ("error", "warning", "dropped"))
    if errors:
        advice = "Fix the errors below in the CSV or the images, then run dvc repro again."
        if table.empty:
            advice = f"No row could be checked. {advice}"
        return {"tone": "error", "headline": f"{plural(errors, 'error')}: nothing was trained.", "advice": advice}
    rows = int(metrics.get("rows", len(table)))
    patients = f" of {plural(people, 'patient')}" if (people := int(metrics.get("patients", 0))) else ""
    ready = f"{plural(int(metrics.get('images', rows)), 'image')}{patients} {'is' if rows == 1 else 'are'} ready."
    found = [plural(warnings, "warning")] if warnings else []
    found += [plural(dropped, "dropped row")] if dropped else []
    if not found:
        return {
            "tone": "good",
            "headline": f"No errors, no warnings: {ready}",
            "advice": "Nothing stands out, but look at the example images anyway.",
        }
    advice = "The pipeline continues. Each warning below says what it means and what to do."
    tone = "warning" if warnings else "dropped"
    return {"tone": tone, "headline": f"No errors, {' and '.join(found)}: {ready}", "advice": advice}


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    known = {key: metrics[key] for key in TILES if key in metrics and (metrics.get("rows") or metrics[key])}
    nouns = {key: TILES[key][0] if value == 1 else f"{TILES[key][0]}s" for key, value in known.items()}
    return [
        {"name": nouns[key], "tone": TILES[key][1] if value else "", "value": value} for key, value in known.items()
    ]


def _comparisons(metrics: Mapping[str, Any], task: Task) -> Iterator[dict[str, Any]]:
    """The tables of shift and shortcuts, with a bar for the figure that the warning looks at."""
    for key, title, names, explanation in (
        ("shift", "Shift: val and test against train", ("Split", "Feature"), SHIFT),
        (
            "shortcuts",
            "Shortcuts: what the file gives away",
            ("Target", "From"),
            SHORTCUTS.format(label=task.label_title),
        ),
    ):
        rows = innermost(metrics.get(key, {}))
        if not rows:
            continue
        columns = list(dict.fromkeys(column for _, values in rows for column in values))
        yield {
            "title": title,
            "explanation": explanation,
            "names": names,
            "columns": [COLUMN_NAMES.get(column, readable(column)) for column in columns],
            "rows": [
                {
                    "path": list(map(readable, path)),
                    "cells": [number(values.get(column)) for column in columns],
                    "meter": _meter(path, values),
                }
                for path, values in rows
            ],
        }


def _meter(path: tuple[str, ...], values: Mapping[str, Any]) -> Markup:
    """A bar for the figure that the warning looks at; nothing where none is known."""
    shifts = [
        (values[test], floor, values.get(f"{test}_p", 1)) for test, floor in SHIFT_FLOORS.items() if test in values
    ]
    if shifts:
        effect, floor, p = max(shifts)
        return meter(effect, (0, 1), floor, effect >= floor and p < P_VALUE)
    if "highest" not in values:
        return Markup("")
    level = SPLIT_THRESHOLD if path[0] == "split" else GRADE_THRESHOLD
    low = values.get("highest_low", 0.0)
    return meter(values["highest"], (0.5, 1), level, low > level, low)


def _without_personal_data(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows; an impression that seems to hold personal data says only so: the page will be shown to others."""
    personal = table["impression"].isin([text for text in table["impression"].unique() if personal_data(text)])
    return table.assign(**{name: table[name].mask(personal, HIDDEN) for name in ("impression", "text")})


def _frequent_texts(table: pd.DataFrame, splits: Sequence[str]) -> list[dict[str, Any]]:
    """The most frequent normalised texts with their rows in each split."""
    if table.empty:
        return []
    frequencies = table["text"].value_counts()
    top = frequencies[frequencies >= frequencies.iloc[:TEXTS_SHOWN].iloc[-1]]
    shown = sorted(top.index, key=lambda text: (-top[text], text))[:TEXTS_SHOWN]
    counts = table.loc[table["text"].isin(shown)].groupby(["text", "split"]).size()
    return [
        {
            "text": text or "(empty)",
            "counts": [int(counts.get((text, split), 0)) for split in splits],
            "share": percent(frequencies[text] / len(table)),
        }
        for text in shown
    ]


def _text_examples(table: pd.DataFrame) -> list[tuple[int, str, str]]:
    """(row, impression, normalised text) of distinct texts, drawn by a fixed seed."""
    rows = table.index[~table["text"].duplicated()].to_numpy()
    drawn = np.random.default_rng(SEED).choice(rows, min(TEXT_EXAMPLES, len(rows)), replace=False)
    return [(int(row), str(table.at[row, "impression"]), str(table.at[row, "text"])) for row in sorted(drawn)]


def _text_figures(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Shares as percentages, which is what they are read as."""
    return [
        (readable(name), percent(value) if "share" in name else value)
        for name, value in metrics.get("texts", {}).items()
    ]


def _silent(issues: Sequence[Issue]) -> list[Entry]:
    """Checks that reported nothing."""
    found = {issue.check for issue in issues}
    if "tokens_not_checked" in found:
        found |= NEEDS_TOKENIZER
    never = {"unreadable_csv", "tokens_not_checked"}
    return [entry for check, entry in GLOSSARY.items() if check not in found | never]
