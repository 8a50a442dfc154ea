"""python benchmarks/layouts.py [--layouts nih mura ...] [--output FILE]

Every public data set's layout in miniature, from its download to a finished `dvc repro`, by the commands a user types:
`knee-siglip import`, then `dvc repro` with the CSV in params.yaml, in a clone of the committed pipeline. Prints the
exit code of both for each layout. The texts are few and the images noise: no figure of the models means anything.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from subprocess import CalledProcessError

from claims import Claim, conclude
from pipeline_run import Clone
from ruamel.yaml import YAML

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from importing_layouts import MINIATURES


def finish(clone: Clone, folder: Path, layout: str) -> tuple[int, float]:
    """Exit code of the import and the pipeline, and their seconds."""
    source, table = folder / layout, folder / f"{layout}.csv"
    MINIATURES[layout](source)
    started = time.perf_counter()
    try:
        clone.run("knee-siglip", "import", str(source), str(table), "--split")
        _set_params(clone.folder / "params.yaml", table, source)
        clone.run("dvc", "repro")
        code = 0
    except CalledProcessError as error:
        code = error.returncode
    return code, time.perf_counter() - started


def _set_params(path: Path, table: Path, images: Path) -> None:
    yaml = YAML()
    params = yaml.load(path.read_text(encoding="utf-8"))
    params["data"] |= {"csv": str(table), "images": str(images)}
    params["train"]["epochs"] = 1
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def main() -> None:
    """Run the layouts one after the other in one clone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", nargs="+", choices=list(MINIATURES), default=list(MINIATURES))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    facts, claims = {}, []
    with tempfile.TemporaryDirectory() as name:
        clone = Clone(Path(name))
        for layout in arguments.layouts:
            code, seconds = finish(clone, Path(name) / "data", layout)
            facts[layout] = {"exit_code": code, "seconds": round(seconds)}
            claims.append(Claim(f"{layout}: exit code of import and dvc repro", code, "<=", 0))
            print(claims[-1], f"{seconds:.0f} s", flush=True)
    conclude(claims, facts, arguments.output)


if __name__ == "__main__":
    main()
