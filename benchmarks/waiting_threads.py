"""python benchmarks/waiting_threads.py [--rounds 3] [--output FILE]

OpenMP threads that soon sleep while they wait (what the package sets) beside threads that spin (what torch does by
itself): one training, two at once, one beside two busy processes, evaluate, batch inference and preprocessing, each as
a process of its own, in turns. Run it after `dvc repro`, on an idle machine; a round takes five minutes on two cores.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from claims import Claim, conclude

from knee_siglip.cli.train import prepare
from knee_siglip.core import paths
from knee_siglip.core.threads import SPIN_COUNT
from knee_siglip.params.files import load_params
from knee_siglip.params.sections import Params

SPIN_COUNTS = {"asleep": SPIN_COUNT, "spinning": "300000"}
"""300,000 is libgomp's own where no policy is set: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html"""

EPOCHS = 2
BESIDE_BUSY = "one training beside two busy processes"


def stage(name: str, store: Path | None = None) -> list[subprocess.Popen[bytes]]:
    """One of the pipeline's stages as DVC runs it, but for its store."""
    environment = {"KNEE_SIGLIP_STORE": str(store)} if store else {"DVC_ROOT": str(Path.cwd())}
    return [start([f"stages/{name}.py"], environment)]


def trainings(folders: list[Path]) -> list[subprocess.Popen[bytes]]:
    """Trainings side by side, each in a folder that is prepared already."""
    store = {"KNEE_SIGLIP_STORE": str(folders[0].parent / "store")}
    return [start(["-m", "knee_siglip.cli.train", str(folder), "cpu"], store) for folder in folders]


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A Python process whose output is thrown away."""
    silent = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, *command], env=os.environ | environment, stdout=silent, stderr=silent)


def seconds(begin: Callable[[], list[subprocess.Popen[bytes]]], busy: int = 0) -> float:
    """Until the last of the processes has ended well, beside so many others that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        started = time.perf_counter()
        codes = [process.wait() for process in begin()]
        if any(codes):
            raise SystemExit("a process failed; run dvc repro first")
        return time.perf_counter() - started
    finally:
        for other in others:
            other.kill()


def prepare_folders(folder: Path) -> list[Path]:
    """Two folders with everything that a short training needs."""
    os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
    values = load_params().to_dict()
    values["tracking"] |= {"mlflow": "none", "wandb": "none"}
    values["data"] |= {name: str(Path(values["data"][name]).absolute()) for name in ("csv", "images")}
    values["train"]["epochs"] = EPOCHS
    folders = [folder / "first", folder / "second"]
    for target in folders:
        prepare(Params.model_validate(values), target)
    del os.environ["KNEE_SIGLIP_STORE"]
    return folders


def measure(rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds by job and by way of waiting, a list over the rounds."""
    folders = prepare_folders(folder)
    jobs: dict[str, Callable[[int], list[subprocess.Popen[bytes]]]] = {
        "one training": lambda _: trainings(folders[:1]),
        "two trainings at once": lambda _: trainings(folders),
        BESIDE_BUSY: lambda _: trainings(folders[:1]),
        "evaluate": lambda _: stage("evaluate"),
        "infer": lambda _: stage("infer"),
        "preprocess": lambda number: stage("preprocess", folder / f"empty store {number}"),
    }
    found: dict[str, dict[str, list[float]]] = {job: {way: [] for way in SPIN_COUNTS} for job in jobs}
    for number in range(2 * rounds):
        way = ("asleep", "spinning")[number % 2]
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNTS[way]
        for job, begin in jobs.items():
            busy = 2 if job == BESIDE_BUSY else 0
            found[job][way].append(seconds(lambda begin=begin, number=number: begin(number), busy))  # type: ignore[misc]
            print(f"{job}, {way}: {found[job][way][-1]:.1f} s", flush=True)
    return found


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if not paths.BEST_MODEL.exists():
        raise SystemExit("run dvc repro first")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.rounds, Path(folder))
    typical = {job: {way: median(times) for way, times in ways.items()} for job, ways in found.items()}
    claims = [
        Claim(f"{job}: seconds asleep / spinning", ways["asleep"] / ways["spinning"], "<=", 1.05)
        for job, ways in typical.items()
    ]
    together = typical["two trainings at once"]["asleep"] / (2 * typical["one training"]["asleep"])
    claims.append(Claim("two trainings at once / one after the other", together, "<=", 1.05))
    print(json.dumps(typical, indent=2))
    conclude(claims, {"seconds": found}, args.output, "torch")


if __name__ == "__main__":
    main()
