"""python -m tests.chaos [--trials N | --numbers LIST] [--seed S] [--jobs N] [--parts LIST] [--only KIND]
                      [--trials_file F] [--output F]

Does to a miniature project what happens to real ones, and looks at what it then holds: kills at random and at named
moments (a whole group, the process alone, the `dvc` above it alone), disks that refuse, flipped bits in every kind of
file that is read back, two of everything at once, clocks that jump. A trial is good where the results are those of an
undisturbed run, byte for byte, or where one sentence says what is wrong and the next run gives those results.

Prints a table and every trial that was not good; exits 1 where there is one. About two seconds a trial on a quiet core.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

from .faults import can_mount
from .processes import preload
from .project import ROOT
from .trials import HUNG, IDENTICAL, KINDS, OUTCOMES, PARTS, REFUSED, TRACEBACK, WRONG, Bench, Trial, fill


def main() -> None:
    """Run the trials and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--numbers", default="", help="these trials alone, such as 78,116: to repeat them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--parts", default=",".join(PARTS), help="stages and commands, in order, after those they read")
    parser.add_argument("--only", default="", help="trials whose function's name holds this")
    parser.add_argument(
        "--trials_file", type=Path, help="a line of JSON per trial; those that it holds are not repeated"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the table")
    args = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        bench = Bench(Path(folder), tuple(args.parts.split(",")))
        file = args.trials_file or Path(folder) / "trials.jsonl"
        numbers = list(map(int, args.numbers.split(","))) if args.numbers else range(args.trials)
        run(bench, numbers, args.seed, args.jobs, args.only, file)
        trials = [trial for _, trial in sorted(read(file).items())]
    print(table_of(trials))
    bad = [trial for trial in trials if trial.outcome not in (IDENTICAL, REFUSED)]
    for trial in bad:
        print(f"{trial.outcome}: {trial.kind}: {trial.case}: {trial.said[:300]}")
    if args.output:
        write(args.output, trials, args.seed)
    sys.exit(bool(bad))


def run(bench: Bench, numbers: Sequence[int], seed: int, jobs: int, only: str, file: Path) -> None:
    """Trials of all kinds, by chance; the same for the same seed and number, whatever the number of jobs."""
    todo = [number for number in numbers if number not in read(file)]
    kinds = _possible_kinds(bench, only)
    gc.freeze()  # else each child's first collection copies all memory
    children = []
    for job in range(jobs):
        if (child := os.fork()) == 0:
            try:
                for number in todo[job::jobs]:
                    rng = Random(f"{seed} {number}")
                    (kind,) = rng.choices([kind for kind, _ in kinds], [share for _, share in kinds])
                    line = json.dumps({"number": number, **asdict(kind(bench, rng))})
                    with file.open("a") as out:
                        out.write(line + "\n")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), "the test itself failed"


def read(file: Path) -> dict[int, Trial]:
    """The trials of a file by number."""
    lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {line.pop("number"): Trial(**line) for line in lines}


def _possible_kinds(bench: Bench, only: str) -> list[tuple[Callable[[Bench, Random], Trial], int]]:
    possible = [(kind, share) for kind, share, needed in KINDS if only in kind.__name__ and {*needed} <= {*bench.parts}]
    if not can_mount():
        print("no disks can be mounted here, so none is filled; a limit of files' sizes stands for it", file=sys.stderr)
        possible = [(kind, share) for kind, share in possible if kind is not fill]
    return possible


def table_of(trials: list[Trial]) -> str:
    """Markdown: a row for each kind."""
    counts: dict[str, Counter[str]] = {}
    for trial in trials:
        counts.setdefault(trial.kind, Counter())[trial.outcome] += 1
    head = "| kind | trials | identical afterwards | refused in a sentence | wrong in silence | traceback | hung |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    total = sum(counts.values(), Counter())
    for kind, found in [*sorted(counts.items()), ("all", total)]:
        cells = [kind, found.total(), *(found[outcome] for outcome in (IDENTICAL, REFUSED, WRONG, TRACEBACK, HUNG))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def write(output: Path, trials: list[Trial], seed: int) -> None:
    """The table as JSON, with date and hardware, as benchmarks have it."""
    sys.path.append(str(ROOT / "benchmarks"))
    from claims import hardware

    kinds = sorted({trial.kind for trial in trials})
    counts = {kind: Counter(trial.outcome for trial in trials if trial.kind == kind) for kind in kinds}
    rows = {kind: {outcome: found[outcome] for outcome in OUTCOMES} for kind, found in counts.items()}
    facts = {"trials": len(trials), "seed": seed, "by_kind": rows}
    output.write_text(json.dumps({"hardware": hardware("torch", "pandas", "pyarrow"), **facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
