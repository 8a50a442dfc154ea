"""Zero-shot findings: is the image nearer to the prompts for a finding than to those against it?"""

import json
import re

import numpy as np
import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.core.expressions import find_matches
from knee_siglip.evaluation.embedded import EmbeddedData, EmbeddedSplit
from knee_siglip.evaluation.headline import interval_metrics
from knee_siglip.metrics.bootstrap import auroc_statistic, interval_of
from knee_siglip.metrics.grading import ranking_areas
from knee_siglip.metrics.matching.similarity import SCORE_DECIMALS, cosine_scores
from knee_siglip.task.task import Finding

PRESENT = frozenset({"1", "1.0", "true", "yes", "y", "present", "positive"})
ABSENT = frozenset({"", "0", "0.0", "false", "no", "n", "absent", "negative", "none"})

NEGATION = re.compile(
    r"\b(?:no|not|without|nor|absence of|absent|negative for|free of|exclude[sd]?|rule(?:d|s)? out)\b"
)
"""What is said not to be there follows these words, as in NegEx: Chapman et al. 2001, doi:10.1006/jbin.2001.1029."""

CLAUSE_END = re.compile(r"[.;:]|\b(?:but|however|although|though|except|apart from|with)\b")
"""A negation does not reach beyond these: "without OA, but with effusion"."""


def finding_truth_and_scores(split: EmbeddedSplit) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each finding of the task the truth (N,) bool and the score (N,).

    The score is the cosine with the prompts for it minus that with those against it, rounded as cosines are: above 0,
    the model says yes.

    Raises:
        UserError: a finding's column is missing, or a cell of it is neither yes nor no.
    """
    found = {}
    for name, finding in split.task.findings.items():
        cosines = cosine_scores(split.image_embeds, split.prompts.findings[name])
        score = np.round(cosines[:, 0] - cosines[:, 1], SCORE_DECIMALS)
        found[name] = finding_truth(split, name, finding), score
    return found


def measure_findings(split: EmbeddedSplit, _: EmbeddedData) -> dict[str, float]:
    """zero_shot_findings.<name>.{auroc,auprc,prevalence,n}, and the interval of the AUROC over patients.

    A finding that all rows or none have is left out.
    """
    metrics: dict[str, float] = {}
    for name, (truth, score) in finding_truth_and_scores(split).items():
        if not (areas := ranking_areas(truth, score)):
            continue
        statistic = auroc_statistic(score, truth)
        interval = interval_of(statistic, split.patients)
        bounds = interval_metrics("auroc", interval, statistic.units(split.patients))
        of_finding = {**areas, **bounds, "prevalence": float(truth.mean()), "n": len(truth)}
        metrics |= {f"zero_shot_findings.{name}.{metric}": value for metric, value in of_finding.items()}
    return metrics


def finding_truth(split: EmbeddedSplit, name: str, finding: Finding) -> np.ndarray:
    """(N,) bool: who has the finding, by its column or by the impressions.

    Raises:
        UserError: the column is missing, or a cell of it is neither yes nor no.
    """
    if finding.column is None:
        assert finding.text is not None
        key = f"task.findings.{name}.text"
        said = {text: is_affirmed(finding.text, text, key) for text in set(split.texts)}
        return np.array([said[text] for text in split.texts], dtype=bool)
    require_column(name, finding, split.rows)
    cells = split.rows[finding.column].fillna("").astype(str)
    known = {cell: _is_present(cell, name) for cell in cells.unique()}
    unclear = cells.map(known).isna().to_numpy()
    if unclear.any():
        row = int(unclear.argmax())
        raise UserError(
            f"{split.rows['img_path'].iloc[row]}: {finding.column} = {cells.iloc[row]!r} does not say whether there is "
            f"{name} (task.findings.{name}); give 1 or 0, yes or no, or a JSON list of findings"
        )
    return cells.map(known).to_numpy(dtype=bool)


def require_column(name: str, finding: Finding, rows: pd.DataFrame) -> None:
    """Raise a UserError where the column that a finding is known by is missing."""
    if finding.column is not None and finding.column not in rows:
        raise UserError(
            f"task.findings.{name}.column = {finding.column!r}: the manifest has no such column; name "
            "one of the CSV's, or give `text`"
        )


def is_affirmed(pattern: str, text: str, key: str) -> bool:
    """Whether the pattern, the param `key`, matches somewhere without a negation before it in the same clause.

    "No fracture, effusion or loose body" affirms none of the three.
    """
    for match in find_matches(key, pattern, text):
        clause = CLAUSE_END.split(text[: match.start()].lower())[-1]
        if not NEGATION.search(clause):
            return True
    return False


def _is_present(cell: str, name: str) -> bool | None:
    """Yes or no; empty is no. A JSON list, of names or of objects with `finding`, says yes where it has `name`."""
    word = cell.strip().lower()
    if word in PRESENT or word in ABSENT:
        return word in PRESENT
    try:
        listed = json.loads(cell)
        named = [item["finding"] if isinstance(item, dict) else item for item in listed]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return name in named if isinstance(listed, list) else None
