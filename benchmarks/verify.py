"""Does this machine give the committed headline metrics?          make verify

    python benchmarks/verify.py

Clones the committed revision into an empty folder, runs `dvc repro` there with nothing cached, and compares
reports/metrics.json with the committed file, digit by digit. Exit code 1: some differ. Processors, versions of torch,
numbers of threads and GPUs round differently, and training enlarges that; so each difference stands beside the spread
over seeds (benchmarks/pipeline_run.json), which is what such a difference is like: docs/experiments.md.
"""

import json
import tempfile
from pathlib import Path
from statistics import stdev

from claims import Claim, hardware
from pipeline_run import ROOT, Clone, differing


def spreads() -> dict[str, float]:
    """Standard deviation of each headline metric over the seeds that were measured last; empty before."""
    measured = json.loads((ROOT / "benchmarks/pipeline_run.json").read_text()).get("default")
    runs = measured["details"]["headline"] if measured else [{}]
    return {name: stdev(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Run, print, and fail where a metric differs."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        committed = clone.headline()
        seconds, _ = clone.run("dvc", "repro")
        found = clone.headline()
    different, over_seeds = differing(committed, found), spreads()
    print(f"{'metric':34}{'committed':>11}{'here':>11}{'difference':>12}{'sd over seeds':>15}")
    for name in committed | found:
        before, now = committed.get(name, float("nan")), found.get(name, float("nan"))
        print(f"{name:34}{before:11.4g}{now:11.4g}{now - before:+12.4g}{over_seeds.get(name, float('nan')):15.2g}")
    machine = hardware("torch", "numpy")
    print(f"{seconds:.0f} s, {', '.join(f'{key} {value}' for key, value in machine.items())}")
    claim = Claim(f"headline metrics of {len(committed)} that differ from the committed ones", len(different), "<=", 0)
    print(claim)
    raise SystemExit(0 if claim.met else 1)


if __name__ == "__main__":
    main()
