"""python benchmarks/start_up.py [--rounds 3] [--output FILE]

How long every command and every stage takes before its work begins: processor and wall-clock seconds, the least of some
rounds on warm files. `--help` of each command; of each stage, the imports of its script; and first answers: one image
ranked by a checkpoint in a new process, what the store holds, and doctor. Run it after `dvc repro`, which leaves the
model that ranks. On a busy machine only the processor's seconds say something.

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from claims import Claim, conclude

from knee_siglip.cli.main import app

TARGET = 3
MODEL, IMAGES = Path("models/best_model.pt"), Path("data/sample/images")


@dataclass(frozen=True)
class Seconds:
    """Of one process with its children."""

    wall: float
    processor: float


def measure(command: list[str], rounds: int) -> Seconds:
    """The least of some rounds, after one that warms the files."""
    found = [once(command) for _ in range(rounds + 1)][1:]
    return Seconds(min(each.wall for each in found), min(each.processor for each in found))


def once(command: list[str]) -> Seconds:
    """One process, its output thrown away."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Seconds(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def commands_below(command: object, *words: str) -> list[tuple[str, ...]]:
    """The words of a command and of all below it."""
    below: dict[str, object] = getattr(command, "commands", {})
    return [words, *(found for name, child in below.items() for found in commands_below(child, *words, name))]


def imports_of(script: Path) -> str:
    """Every import of a script, those inside its functions too: what it waits for before its work."""
    nodes = ast.walk(ast.parse(script.read_text(encoding="utf-8")))
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))


def jobs() -> dict[str, dict[str, list[str]]]:
    """Commands by kind and name."""
    image = next(iter(sorted(IMAGES.glob("*.png"))))
    ours = [sys.executable, "-c", "from knee_siglip.cli.main import main; main()"]
    commands = commands_below(typer.main.get_command(app))
    helps = {" ".join(("knee-siglip", *words)): [*ours, *words, "--help"] for words in commands}
    stages = {path.stem: [sys.executable, "-c", imports_of(path)] for path in sorted(Path("stages").glob("*.py"))}
    answers = {
        "one image ranked": [*ours, "infer", "--model_path", str(MODEL), "--image_path", str(image)],
        "store show": [*ours, "store", "show"],
        "doctor": [*ours, "doctor"],
    }
    return {"--help": helps, "imports of a stage": stages, "first answer": answers}


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if not MODEL.exists():
        raise SystemExit("run dvc repro first")
    claims: list[Claim] = []
    facts: dict[str, Any] = {"load": os.getloadavg()}
    for kind, commands in jobs().items():
        found = {name: measure(command, args.rounds) for name, command in commands.items()}
        for name, seconds in found.items():
            print(f"{kind}, {name}: {seconds.wall:.2f} s, {seconds.processor:.2f} s of the processor", flush=True)
        slowest = max(found.values(), key=lambda seconds: seconds.processor)
        claims.append(Claim(f"{kind}: the slowest", max(each.wall for each in found.values()), "<=", TARGET, "s"))
        claims.append(Claim(f"{kind}: the most of the processor", slowest.processor, "<=", TARGET, "s"))
        facts[kind] = {name: asdict(seconds) for name, seconds in found.items()}
    conclude(claims, facts, args.output, "torch", "pandas", "typer")


if __name__ == "__main__":
    main()
