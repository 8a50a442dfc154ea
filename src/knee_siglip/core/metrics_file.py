"""Metrics as files: nested, strict JSON, with four significant digits."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_text
from knee_siglip.core.nesting import nest

SIGNIFICANT_DIGITS = 4
"""Processors round differently from about the seventh digit on; a test set of some hundred images tells three."""


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics by their dotted names as the nested JSON that DVC reads.

    A number that is not finite is left out: JSON has no name for it, and DVC would not read the file.
    """
    write_json(path, nest(rounded(metrics)))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, indented so that git shows which value changed.

    Raises:
        ValueError: a number is not finite.
    """
    with atomic_text(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, then run dvc repro") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no JSON object); remove it, then run dvc repro")
    return content


def rounded(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Round metrics, flat or nested, to `SIGNIFICANT_DIGITS`; counts stay whole, nan and inf are dropped."""
    kept = finite(metrics)
    for name, value in kept.items():
        if isinstance(value, Mapping):
            kept[name] = rounded(value)
        elif isinstance(value, float):
            kept[name] = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return kept


def finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Drop nan and inf, which JSON cannot hold."""
    return {name: value for name, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)}
