"""python benchmarks/validate_scale.py [--rows 100000] [--output benchmarks/validate_scale.json]

`validate` on many rows: time, and that memory does not grow with the pixels. The images are small random landscapes,
made on the spot in a temporary folder, so what is measured is everything but the decoding of large files. A second run,
with 1 % of the images new, shows what the kept facts save.
"""

import argparse
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from claims import Claim, conclude
from PIL import Image

SIDE = 128
COARSE = 12
GRADES = ("no", "doubtful", "mild", "moderate", "severe")


def draw(folder: Path, numbers: range) -> None:
    """Write images `<number>.png`: uint8 (SIDE, SIDE), no two alike."""
    for number in numbers:
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (COARSE, COARSE)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
        grey = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png", compress_level=1)


def draw_all(folder: Path, start: int, stop: int) -> None:
    """Draw on all cores."""
    steps = range(start, stop, 500)
    with ProcessPoolExecutor() as pool:
        list(pool.map(draw, [folder] * len(steps), [range(step, min(step + 500, stop)) for step in steps]))


def rows(numbers: range) -> pd.DataFrame:
    """Two images per patient; val and test hold 10 % of the patients each."""
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, len(numbers))
    sides = ["left" if number % 2 else "right" for number in numbers]
    return pd.DataFrame(
        {
            "img_path": [f"images/{number}.png" for number in numbers],
            "impression": [
                f"{GRADES[g].capitalize()} OA of {side} knee." for g, side in zip(grades, sides, strict=True)
            ],
            "split": [{0: "val", 1: "test"}.get(number // 2 % 10, "train") for number in numbers],
            "patient_id": [str(number // 2) for number in numbers],
            "side": sides,
            "kl_grade": grades,
        }
    )


def validate_in_child(folder: Path) -> tuple[float, float]:
    """Seconds, and peak memory in GiB of the largest process, of one run of validate."""
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
        from knee_siglip.params.files import parse_params
        from knee_siglip.validation.validate import validate

        status = 1
        try:
            validate(parse_params({"data": {"csv": "train.csv", "images": "images"}}))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("validate failed; its issues are above")
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    """Measure a first run and one with 1 % new images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        draw_all(folder / "images", 0, args.rows)
        rows(range(args.rows)).to_csv(folder / "train.csv", index=False)
        first, _ = validate_in_child(folder)
        more = args.rows + args.rows // 100
        draw_all(folder / "images", args.rows, more)
        rows(range(more)).to_csv(folder / "train.csv", index=False)
        second, memory = validate_in_child(folder)
    claims = [
        Claim(f"{args.rows:,} rows validated", first / 60, "<=", 15 * args.rows / 100_000, "minutes"),
        Claim("peak memory of its largest process", memory, "<=", 3, "GiB"),
    ]
    facts = {"rows": args.rows, "seconds": first, "seconds_again_with_1_percent_new": second, "peak_gib": memory}
    print(f"again, with 1 % new images: {second:.0f} s")
    conclude(claims, facts, args.output, "numpy", "pandas", "pillow")


if __name__ == "__main__":
    main()
