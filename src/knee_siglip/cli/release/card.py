"""The model card: Mitchell et al. 2019, arXiv:1810.03993. From an evaluation's metrics and facts alone."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from knee_siglip import __version__
from knee_siglip.core import paths
from knee_siglip.core.nesting import flatten

if TYPE_CHECKING:
    from knee_siglip.cli.release.command import Candidate

LOW, HIGH, UNITS = "_ci_low", "_ci_high", "_ci_units"
SHOWN_IN_GROUPS = ("quadratic_weighted_kappa", "contrastive_accuracy")


def model_card(candidate: "Candidate", name: str, tag: str, verdict: str) -> str:
    """Markdown without a path, id or text of the data; tag: GTO's version."""
    metrics = flatten(candidate.metrics["test"])
    params = candidate.facts["params"]
    environment = Environment(  # noqa: S701  # Markdown of figures and names of params, not HTML
        loader=PackageLoader("knee_siglip.cli.release"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.j2").render(
        name=name,
        tag=tag,
        verdict=verdict,
        version=__version__,
        commit=candidate.commit,
        sha256=candidate.sha256,
        facts=candidate.facts,
        params=params,
        task=params["task"],
        encoders={tower: _public(params["model"][tower]) for tower in ("vision", "text")},
        is_drawn=params["data"]["csv"].startswith(f"{paths.SAMPLE}/"),
        intervals=list(_intervals(metrics)),
        metrics=metrics,
        groups=list(_groups(candidate.subgroups)),
    )


def _public(encoder: str) -> str:
    """A hub's name; a folder's may name a hospital."""
    return "of a local folder" if encoder.startswith(("/", ".", "~")) else encoder


def _intervals(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and 95 % interval of each metric that has one, or would have one of more patients."""
    for name, value in metrics.items():
        if f"{name}{LOW}" in metrics:
            yield name, f"{value:.3f}", f"{metrics[name + LOW]:.3f} to {metrics[name + HIGH]:.3f}"
        elif f"{name}{UNITS}" in metrics:
            yield name, f"{value:.3f}", "too few patients"


def _groups(table: str) -> Iterator[dict[str, str]]:
    """The test split's subgroups, each by the first of `SHOWN_IN_GROUPS` that it has; without one it is too small."""
    rows = [row for row in csv.DictReader(io.StringIO(table)) if row["split"] == "test"]
    for column, group in dict.fromkeys((row["column"], row["group"]) for row in rows):
        mine = [row for row in rows if (row["column"], row["group"]) == (column, group)]
        known = {row["metric"].rsplit(".", 1)[-1]: row for row in mine if row["value"]}
        best = next((known[name] for name in SHOWN_IN_GROUPS if name in known), None)
        flagged = ", ".join(row["metric"] for row in mine if row["flagged"] == "True")
        if best is None:
            yield {**mine[0], "metric": ""}
            continue
        cells = {key: f"{float(best[key]):.3f}" if best[key] else "-" for key in ("value", "low", "high")}
        yield {**best, **cells, "flagged": flagged}
