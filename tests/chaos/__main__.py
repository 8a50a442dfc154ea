"""python -m tests.chaos [--trials N] [--seed S] [--jobs N] [--stages LIST] [--only KIND] [--output FILE] [--show]

Does to a miniature project what happens to real ones, and looks at what it then holds: kills at random and at named
moments (a whole group, the process alone, the `dvc` above it alone), disks that refuse, flipped bits in every kind of
file that is read back, two of everything at once, clocks that jump. A trial is good where the results are those of an
undisturbed run, byte for byte, or where one sentence says what is wrong and the next run gives those results.

Prints a table and every trial that was not good; exits 1 where there is one. About two seconds a trial on a quiet core.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from random import Random

from .processes import preload
from .project import ROOT, STAGES
from .trials import HUNG, IDENTICAL, KINDS, OUTCOMES, REFUSED, TRACEBACK, WRONG, Bench, Trial, damage_batch


def main() -> None:
    """Run the trials and show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--stages", default=",".join(STAGES), help="that take part, in order, after those they read")
    parser.add_argument("--only", help="trials whose function's name holds this")
    parser.add_argument("--output", type=Path, help="a JSON file for the table")
    parser.add_argument("--show", action="store_true", help="print every trial")
    args = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        bench = Bench(Path(folder), tuple(args.stages.split(",")))
        trials = run(bench, args.trials, args.seed, args.jobs, args.only or "", args.show)
    print(table_of(trials))
    bad = [trial for trial in trials if trial.outcome not in (IDENTICAL, REFUSED)]
    for trial in bad:
        print(f"{trial.outcome}: {trial.kind}: {trial.case}: {trial.said[:300]}")
    if args.output:
        write(args.output, trials, args.seed)
    sys.exit(bool(bad))


def run(bench: Bench, count: int, seed: int, jobs: int, only: str = "", show: bool = False) -> list[Trial]:
    """`count` trials of all kinds, by chance; the same for the same seed, whatever the number of jobs."""
    files = [bench.folder / f"job-{job}.jsonl" for job in range(jobs)]
    children = []
    for job, file in enumerate(files):
        if (child := os.fork()) == 0:
            try:
                with file.open("w") as out:
                    for number in range(job, count, jobs):
                        trial = one(bench, Random(f"{seed} {number}"), only)
                        out.write(json.dumps(asdict(trial)) + "\n")
                        out.flush()
                        if show:
                            print(f"{number}: {trial.outcome}: {trial.kind}: {trial.case}: {trial.said}", flush=True)
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), "the test itself failed"
    return [Trial(**json.loads(line)) for file in files for line in file.read_text().splitlines()]


def one(bench: Bench, rng: Random, only: str) -> Trial:
    """One trial of a kind by chance."""
    kinds = [(kind, share) for kind, share in KINDS if only in kind.__name__]
    if "infer" not in bench.stages:
        kinds = [(kind, share) for kind, share in kinds if kind is not damage_batch]
    (kind,) = rng.choices([kind for kind, _ in kinds], [share for _, share in kinds])
    return kind(bench, rng)


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
