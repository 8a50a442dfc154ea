"""The model card's figures: what the model is, what it learnt from, with which params."""

from collections.abc import Mapping
from typing import Any

from knee_siglip.core.nesting import flatten
from knee_siglip.report.html.numbers import leaves, number, readable
from knee_siglip.report.html.tables import Table

VALUE_LENGTH = 240
"""Characters of a value that the table of params shows: prompts are long lists."""


def fact_tables(facts: Mapping[str, Any]) -> list[Table]:
    """Data, preprocessed images and model, each as far as it is known. facts: as in facts.json."""
    data = {"manifest hash": facts["data_hash"]} if facts.get("data_hash") else {}
    model = {"code revision": facts.get("revision") or "unknown"}
    model |= {"file hash (SHA-256)": facts["model_sha256"]} if facts.get("model_sha256") else {}
    tables = [
        _table("Data", {**data, **_named(facts.get("counts", {}))}),
        _table("Preprocessed images", _named(facts.get("cache", {}))),
        _table("Model", {**model, **_named(facts.get("checkpoint", {}))}),
    ]
    return [table for table in tables if table.rows]


def params_table(facts: Mapping[str, Any]) -> Table | None:
    """Every param of the model and its evaluation by its name in params.yaml."""
    rows = [[name, _clipped(value)] for name, value in flatten(dict(facts.get("params", {}))).items()]
    return Table("As in params.yaml.", ["Param", "Value"], rows, words=2) if rows else None


def _table(caption: str, values: Mapping[str, Any]) -> Table:
    rows = [[name, number(value)] for name, value in values.items()]
    return Table(caption, ["", ""], rows, words=2)


def _named(nested: Mapping[str, Any]) -> dict[str, Any]:
    return {": ".join(readable(part.replace(".", "_")) for part in path): value for path, value in leaves(nested)}


def _clipped(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "none" if value is None else str(value)
    return shown if len(shown) <= VALUE_LENGTH else shown[: VALUE_LENGTH - 1] + "…"
