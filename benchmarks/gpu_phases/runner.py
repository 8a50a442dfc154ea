"""Runs phases within a budget of seconds: each guarded, timed, and written to disk as it ends."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from claims import Claim
from rich.console import Console
from rich.table import Table

Figures = dict[str, Any]
Results = dict[str, Figures]
"""Figures of the phases that ended well, by their names."""


def no_claims(_: Figures, __: Results) -> list[Claim]:
    """Of a phase that only reports."""
    return []


@dataclass(frozen=True)
class Phase:
    """`run` measures. `seconds` it takes on an H100: with less left it is skipped.

    claims: from its figures and the results so far, its own included, to goals. package: without it the phase is
    skipped too.
    """

    name: str
    seconds: float
    run: Callable[[], Figures]
    claims: Callable[[Figures, Results], Iterable[Claim]] = no_claims
    package: str = ""


@dataclass
class Report:
    """Everything that was measured; a line for each phase in `file`, on disk before the next phase starts."""

    file: Path
    results: Results = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)  # skipped, with goals

    def run(self, phases: Sequence[Phase], budget: float, started: float) -> None:
        """Run the phases in order; `started`: the time, by `time.perf_counter`, from which the budget counts."""
        for phase in phases:
            left = budget - (time.perf_counter() - started)
            if phase.package and find_spec(phase.package) is None:
                self._skip(phase, f"{phase.package} is not installed")
            elif phase.seconds > left:
                self._skip(phase, f"needs {phase.seconds:.0f} s, {left:.0f} s are left")
            else:
                self._run(phase)

    def _skip(self, phase: Phase, reason: str) -> None:
        self.skipped[phase.name] = reason
        if phase.claims is not no_claims:
            self.unmeasured.append(phase.name)
        self._write(phase.name, "skipped", reason=reason)

    def _run(self, phase: Phase) -> None:
        begun = time.perf_counter()
        found: Results = {}
        try:
            self.results[phase.name] = found["figures"] = phase.run()
            claims = list(phase.claims(found["figures"], self.results))
        except Exception as error:  # whatever it is, the other phases are still worth their seconds
            first_line = str(error).splitlines()[0] if str(error) else ""
            self.failures[phase.name] = f"{type(error).__name__}: {first_line}"
            more: Figures = {"error": self.failures[phase.name], "traceback": traceback.format_exc()}
        else:
            self.claims += claims
            more = {"goals": [asdict(claim) | {"met": claim.met} for claim in claims]}
        status = "error" if phase.name in self.failures else "ok"
        self._write(phase.name, status, seconds=time.perf_counter() - begun, **found, **more)

    def _write(self, name: str, status: str, **values: Any) -> None:
        line = json.dumps({"phase": name, "status": status, **values}, default=float)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = values.get("error") or values.get("reason") or values["figures"]
        seconds = f" {values['seconds']:.1f} s" if "seconds" in values else ""
        print(f"{name}: {status}{seconds} {json.dumps(shown, default=float)[:600]}", flush=True)

    @property
    def all_met(self) -> bool:
        """Whether every goal was measured and is met, and no phase failed."""
        return not self.failures and not self.unmeasured and all(claim.met for claim in self.claims)

    def print_table(self) -> None:
        """Goals beside figures, and what could not be measured."""
        table = Table("figure", "measured", "goal", "", title="gpu_all")
        for claim in self.claims:
            goal = f"{claim.relation} {claim.target:g} {claim.unit}".strip()
            table.add_row(claim.name, f"{claim.figure:.4g}", goal, "met" if claim.met else "MISSED")
        for verdict, reasons in (("FAILED", self.failures), ("SKIPPED", self.skipped)):
            for name, reason in reasons.items():
                table.add_row(name, reason[:50], "", verdict)
        Console(width=140).print(table)
