"""Metrics files are strict JSON, nested, and hold four significant digits."""

import json
from pathlib import Path

import numpy as np
import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import read_json, rounded, write_json, write_metrics


def test_dotted_names_become_sections(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.json"
    write_metrics(path, {"test.loss": 1.5, "test.retrieval.mrr": 0.25, "rows": 318})
    assert read_json(path) == {
        "test": {"loss": 1.5, "retrieval": {"mrr": 0.25}},
        "rows": 318,
    }


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.87654321, 0.8765), (1.00004, 1.0), (0.000123456, 0.0001235), (-12.3456, -12.35), (np.float64(2 / 3), 0.6667)],
)
def test_numbers_have_four_significant_digits(value: float, written: float) -> None:
    assert rounded({"section": {"name": value}}) == {"section": {"name": written}}


def test_counts_and_words_stay_as_they_are() -> None:
    values = {"parameters": 1_031_266, "best": True, "kind": "PNG", "nothing": None}
    assert rounded(values) == values


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.json", {"loss": float("nan"), "val": {"loss": float("inf"), "rows": 2}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"val": {"rows": 2}}


def test_other_files_refuse_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "facts.json", {"loss": float("nan")})


def test_a_missing_file_holds_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "metrics.json") == {}


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": "\xb5"}', b"[1]", b'{"a": 1', b""])
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cache\.json is damaged \(.*\); remove it, then run dvc repro"):
        read_json(tmp_path / "cache.json")
