"""Write README's default figures from benchmarks/pipeline_run.json.          python benchmarks/readme_figures.py

The figures are made by `python benchmarks/pipeline_run.py --parts default` (8 minutes on two idle cores).
"""

import json
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MEASURED = ROOT / "benchmarks/pipeline_run.json"
BEGIN, END = "<!-- default figures -->\n", "<!-- end -->\n"


def block(headline: list[dict[str, float]]) -> str:
    """A line for each headline metric: the first seed's, which `dvc metrics show` prints; mean and deviation of all."""
    lines = [f"{'':32}{'seed 0':>8}{'mean':>9}{'sd':>9}"]
    for name in headline[0]:
        values = [run[name] for run in headline]
        lines.append(f"{name:32}{values[0]:>8.4g}{mean(values):>9.4g}{stdev(values):>9.2g}")
    return "\n".join(["```", *lines, "```", ""])


def updated(readme: str, headline: list[dict[str, float]]) -> str:
    """README with the block between its two comments written anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + block(headline) + END + after


def main() -> None:
    """Update README.md."""
    headline = json.loads(MEASURED.read_text(encoding="utf-8"))["default"]["details"]["headline"]
    README.write_text(updated(README.read_text(encoding="utf-8"), headline), encoding="utf-8")


if __name__ == "__main__":
    main()
