"""python benchmarks/one_image.py [--model models/best_model.pt] [--manifest data/validated/manifest.parquet]

The checkpoint alone in an empty folder: `knee-siglip infer` on one image in under 10 seconds, and over the test split's
knees of grade 4 and grade 0 how often the former score higher on "severe osteoarthritis". Needs a finished `dvc repro`.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

QUERY = "severe osteoarthritis"


def infer(folder: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and standard output of `knee-siglip infer` with the model in `folder`."""
    command = ["knee-siglip", "infer", "--model_path", "best_model.pt", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, done.stdout


def main() -> None:
    """Measure, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/best_model.pt"))
    parser.add_argument("--manifest", type=Path, default=Path("data/validated/manifest.parquet"))
    args = parser.parse_args()
    manifest = pd.read_parquet(args.manifest)
    knees = manifest[(manifest["split"] == "test") & manifest["kl_grade"].isin([0, 4])]
    table = knees.assign(img_path=[str(Path(name).resolve()) for name in knees["image_file"]])[["img_path", "kl_grade"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(args.model, folder / "best_model.pt")
        seconds, output = infer(folder, "--image_path", table["img_path"].iloc[0], "--json")
        ranked = json.loads(output)["queries"]
        table.to_csv(folder / "knees.csv", index=False)
        infer(folder, "--csv_path", "knees.csv", "--query", QUERY)
        results = pd.read_csv(folder / "results.csv")
    similarity = results[f"similarity: {QUERY}"].to_numpy()
    severe, normal = (similarity[results["kl_grade"].to_numpy() == grade] for grade in (4, 0))
    share = float(np.mean(severe[:, None] > normal[None, :]))
    print(f"one image, {len(ranked)} queries: {seconds:.1f} s (target <= 10)")
    print(f"pairs in which the grade 4 knee scores higher on {QUERY!r}: {share:.3f} of {severe.size * normal.size}")
    print(f"mean similarity: grade 4 {severe.mean():+.3f}, grade 0 {normal.mean():+.3f} (target: the former higher)")
    raise SystemExit(0 if seconds <= 10 and severe.mean() > normal.mean() and share > 0.5 else 1)


if __name__ == "__main__":
    main()
