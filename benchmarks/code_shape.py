"""python benchmarks/code_shape.py [--before REVISION] [--output FILE]

The shape of the package: lines, files per folder, lengths of functions, beside those at another revision (8a10cbc, the
last one before the package was divided into rooms). Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from statistics import median, quantiles

from claims import Claim, conclude

PACKAGE = "src/knee_siglip"
MOST_LINES, MOST_FILES, LONGEST = 17_500, 18, 60


def sources(revision: str) -> dict[PurePosixPath, str]:
    """Path in the package to source, of a git revision."""
    archive = subprocess.run(["git", "archive", revision, PACKAGE], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            PurePosixPath(member.name).relative_to(PACKAGE): file.read().decode()
            for member in tar
            if member.name.endswith(".py") and (file := tar.extractfile(member)) is not None
        }


def function_lengths(source: str) -> Iterator[int]:
    """Lines of every function, from `def` to its end."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.end_lineno - node.lineno + 1


def shape(files: dict[PurePosixPath, str]) -> dict[str, int | float | str]:
    """Figures of one revision; an `__init__.py` is no file of its folder."""
    lengths = [length for source in files.values() for length in function_lengths(source)]
    folders = Counter(str(path.parent) for path in files if path.name != "__init__.py")
    ((widest, count),) = folders.most_common(1)
    return {
        "lines": sum(source.count("\n") for source in files.values()),
        "files": len(files),
        "files at the root": folders["."],
        "widest folder": widest,
        "files in it": count,
        "functions": len(lengths),
        "median lines of a function": median(lengths),
        "90th percentile": quantiles(lengths, n=10)[-1],
        "longest": max(lengths),
    }


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="8a10cbc", metavar="REVISION")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    before, now = shape(sources(args.before)), shape(sources("HEAD"))
    for name, value in now.items():
        print(f"{name:28} {before[name]!s:>12} -> {value}")
    claims = [
        Claim("lines of the package", float(now["lines"]), "<=", MOST_LINES),
        Claim("files in the widest folder", float(now["files in it"]), "<=", MOST_FILES),
        Claim("modules at the package's root", float(now["files at the root"]), "<=", 0),
        Claim("lines of the longest function", float(now["longest"]), "<=", LONGEST),
    ]
    conclude(claims, {"before": before, "now": now}, args.output)


if __name__ == "__main__":
    main()
