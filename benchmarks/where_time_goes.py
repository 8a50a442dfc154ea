"""python benchmarks/where_time_goes.py [--output FILE]

Where the time of a training, of evaluate and of infer goes on the default run: stacks sampled a hundred times a second
(py-spy, `pip install py-spy`), by what the main thread was doing. Run it after `dvc repro`.

A table without targets: it says where to look before anything is made faster. Trackers' own processes are not in it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from claims import conclude
from waiting_threads import prepare_folders

RATE = 100
"""Samples a second."""

ACTIVITIES = {
    "imports": r"_find_and_load",
    "waiting for the trackers": r"end_senders",
    "backward": r"_engine_run_backward",
    "optimizer": r"torch/optim|clip_grad",
    "encoders: products": r"torch/nn/modules/linear\.py",
    "encoders: attention": r"\bgather\b",
    "encoders: the rest": r"encoders/",
    "logistic regression": r"sklearn/linear_model",
}
"""Activity by a pattern of its stack, the first that matches."""


def activity(stack: str) -> str:
    """What a stack, outermost frame first, was doing; our innermost module where no pattern matches."""
    for name, pattern in ACTIVITIES.items():
        if re.search(pattern, stack):
            return name
    ours = re.findall(r"knee_siglip/([\w/]+)\.py", stack)
    return ours[-1] if ours else "start of Python"


def profile(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds by activity, the longest first."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        recorder = ["py-spy", "record", "--format", "raw", "--rate", str(RATE), "--nonblocking", "--output", file.name]
        done = subprocess.run(
            [*recorder, "--", sys.executable, *command], env=os.environ | environment, capture_output=True, check=False
        )
        stacks = Path(file.name).read_text(encoding="utf-8").splitlines()
    if done.returncode or not stacks:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    samples: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        samples[activity(stack)] += int(count)
    return {name: count / RATE for name, count in samples.most_common()}


def main() -> None:
    """Profile the three jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = prepare_folders(Path(folder))[0]
        store = {"KNEE_SIGLIP_STORE": str(target.parent / "store")}
        in_place = {"DVC_ROOT": str(Path.cwd())}
        seconds = {
            "two epochs of training": profile(["-m", "knee_siglip.cli.train", str(target), "cpu"], store),
            "evaluate": profile(["stages/evaluate.py"], in_place),
            "infer": profile(["stages/infer.py"], in_place),
        }
    for job, activities in seconds.items():
        total = sum(activities.values())
        print(f"{job}: {total:.1f} s")
        for name, value in list(activities.items())[:12]:
            print(f"  {name}: {value:.1f} s, {value / total:.0%}")
    conclude([], {"seconds": seconds}, args.output, "torch")


if __name__ == "__main__":
    main()
