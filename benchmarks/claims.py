"""What every benchmark ends with: figure beside target on screen, a JSON result, exit code 1 where one is missed."""

import json
import operator
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NoReturn

RELATIONS = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Claim:
    """`name`: `figure` must be `relation` `target`; all in `unit`."""

    name: str
    figure: float
    relation: Literal[">=", "<="]
    target: float
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure reaches the target."""
        return bool(RELATIONS[self.relation](self.figure, self.target))

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.name}: {self.figure:.4g} {self.unit} (target {self.relation} {self.target:g}) {verdict}"


def hardware(*packages: str) -> dict[str, Any]:
    """Date, machine and versions of the packages measured."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def conclude(claims: Sequence[Claim], facts: Mapping[str, Any], output: Path, *packages: str) -> NoReturn:
    """Print the claims, write them and the `facts` behind them to `output`, and exit: 0, or 1 where one is missed."""
    for claim in claims:
        print(claim)
    rows = [{"name": c.name, "figure": c.figure, "relation": c.relation, "target": c.target} for c in claims]
    result = {"hardware": hardware(*packages), "claims": rows, "facts": dict(facts)}
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if all(claim.met for claim in claims) else 1)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
