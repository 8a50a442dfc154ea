"""python benchmarks/inversion.py --csv <knee-xrays>/train.csv [--sample data/sample/train.csv] [--output FILE]

How well inverted radiographs are found: precision and recall on the labelled list benchmarks/inverted_knees.csv, on
inverted copies of all normal images, on both knees of a patient pasted into one film, on the drawn sample (none
inverted), and under every disturbance of disturbances.py. Wilson 95 % intervals.
`held out` are the validation and test patients: no weight was fitted on them
(features and caution were chosen with a look at some).
"""

import argparse
import math
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude
from disturbances import DISTURBANCES
from PIL import Image

from knee_siglip.imaging.decode.inversion import inversion_probability
from knee_siglip.imaging.decode.read import read_grey

HERE = Path(__file__).parent
EVERY = 10
"""Under disturbances, every how manieth image of a set is judged."""


def wilson(hits: int, total: int) -> dict[str, float]:
    """Share with its Wilson score interval, 95 %."""
    if not total:
        return {"hits": hits, "of": total}
    share, z = hits / total, 1.959964
    centre, scale = share + z * z / (2 * total), 1 + z * z / total
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return {"hits": hits, "of": total, "share": share, "low": (centre - half) / scale, "high": (centre + half) / scale}


def judge(path: Path) -> tuple[bool, bool]:
    """Whether the image and its inverted copy are called inverted."""
    grey = read_grey(path)
    return inversion_probability(grey) > 0.5, inversion_probability(255 - grey) > 0.5


def films(right: np.ndarray, left: np.ndarray) -> dict[str, np.ndarray]:
    """Both knees as films show them: side by side, with a gap, and cropped to flat strips; uint8."""
    quarter, gap = len(right) // 4, np.zeros((len(right), len(right) // 10), np.uint8)
    strips = [right[quarter:-quarter], left[quarter:-quarter]]
    pairs = {"side by side": [right, left], "with a gap": [right, gap, left], "cropped": strips}
    flat = {name: np.asarray(Image.fromarray(np.hstack(knees)).resize((640, 161))) for name, knees in pairs.items()}
    return {"side by side, full height": np.hstack([right, left]), **flat}


def judge_films(knees: tuple[Path, Path]) -> list[tuple[bool, bool]]:
    """For each of `films`, whether it and its inverted copy are called inverted."""
    made = films(*map(read_grey, knees)).values()
    return [(inversion_probability(film) > 0.5, inversion_probability(255 - film) > 0.5) for film in made]


def on_films(pool: Any, table: pd.DataFrame) -> dict[str, Any]:
    """Pairs of normal knees, by `films`: films called inverted, and inverted copies found."""
    normal = table[~table.inverted].pivot(index="patient_id", columns="side", values="path").dropna()
    calls = np.array(pool.map(judge_films, list(zip(normal.right, normal.left, strict=True)), 4))
    names = films(*[np.zeros((8, 8), np.uint8)] * 2)
    return {
        name: {
            "false alarms": wilson(int(calls[:, number, 0].sum()), len(calls)),
            "inverted copies found": wilson(int(calls[:, number, 1].sum()), len(calls)),
        }
        for number, name in enumerate(names)
    }


def judge_disturbed(path: Path) -> list[tuple[bool, bool]]:
    """The same under every disturbance."""
    grey = read_grey(path)
    sources = ((image, seed) for seed in range(len(DISTURBANCES)) for image in (grey, 255 - grey))
    disturb = list(DISTURBANCES.values())
    found = [inversion_probability(disturb[seed](image, np.random.default_rng(seed))) > 0.5 for image, seed in sources]
    return list(zip(found[::2], found[1::2], strict=True))


def on_list(table: pd.DataFrame) -> dict[str, Any]:
    """table: columns inverted, called, copy_called. Precision, recall and what became of inverted copies."""
    right = int((table.inverted & table.called).sum())
    normal = table[~table.inverted]
    return {
        "precision": wilson(right, int(table.called.sum())),
        "recall": wilson(right, int(table.inverted.sum())),
        "false alarms among normal": wilson(int(normal.called.sum()), len(normal)),
        "inverted copies of normal found": wilson(int(normal.copy_called.sum()), len(normal)),
    }


def disturbed(pool: Any, paths: list[Path]) -> dict[str, Any]:
    """Per disturbance: normal images called inverted, and inverted copies found."""
    calls = np.array(pool.map(judge_disturbed, paths, 4))
    return {
        name: {
            "false alarms": wilson(int(calls[:, number, 0].sum()), len(paths)),
            "inverted copies found": wilson(int(calls[:, number, 1].sum()), len(paths)),
        }
        for number, name in enumerate(DISTURBANCES)
    }


def milliseconds(path: Path, side: int, repeats: int = 100) -> float:
    """Median time for one image of side x side pixels."""
    grey = np.asarray(Image.fromarray(read_grey(path)).resize((side, side)))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        inversion_probability(grey)
        times.append(time.perf_counter() - started)
    return float(np.median(times) * 1000)


def read_table(csv: Path) -> pd.DataFrame:
    """The CSV's images with `path`, `inverted` (from the labelled list) and `held_out`."""
    table = pd.read_csv(csv, dtype=str)
    labels = pd.read_csv(HERE / "inverted_knees.csv").set_index("img_path").inverted
    table["path"] = [csv.parent / name for name in table.img_path]
    table["inverted"] = table.img_path.map(labels).fillna(0).astype(bool)
    table["held_out"] = table.split != "train"
    return table


def main() -> None:
    """Measure, print, compare with the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="CSV of the real radiographs")
    parser.add_argument("--sample", type=Path, default=HERE.parent / "data/sample/train.csv", help="the drawn sample's")
    parser.add_argument("--output", type=Path, default=HERE / "inversion.json")
    args = parser.parse_args()
    real, drawn = read_table(args.csv), read_table(args.sample)
    facts: dict[str, Any] = {}
    with Pool() as pool:
        for table in (real, drawn):
            table[["called", "copy_called"]] = pool.map(judge, table.path, 16)
        facts["labelled list"] = on_list(real)
        facts["labelled list, held out"] = on_list(real[real.held_out])
        facts["drawn sample"] = on_list(drawn)
        facts["both knees on one film"] = on_films(pool, real)
        for name, table in (("real", real), ("drawn", drawn)):
            chosen = table[table.held_out & ~table.inverted].path.iloc[::EVERY]
            facts[f"disturbed, {name}, held out"] = disturbed(pool, list(chosen))
    facts["ms per image"] = {side: milliseconds(drawn.path[0], side) for side in (224, 512, 2000)}
    for part, figures in facts.items():
        print(part, *(f"  {name}: {value}" for name, value in figures.items()), sep="\n")
    everything, held_out = facts["labelled list"], facts["labelled list, held out"]
    on_film = facts["both knees on one film"].values()
    claims = [
        Claim("false alarms on films of two knees", sum(film["false alarms"]["hits"] for film in on_film), "<=", 0),
        Claim(
            "inverted films found, worst", min(film["inverted copies found"]["share"] for film in on_film), ">=", 0.8
        ),
        Claim("precision on the labelled list", everything["precision"].get("share", 0.0), ">=", 0.95),
        Claim("recall on the labelled list", everything["recall"].get("share", 0.0), ">=", 0.95),
        Claim("precision, held-out patients", held_out["precision"].get("share", 0.0), ">=", 0.95),
        Claim("recall, held-out patients", held_out["recall"].get("share", 0.0), ">=", 0.95),
        Claim("inverted copies found", everything["inverted copies of normal found"]["share"], ">=", 0.95),
        Claim("false alarms on the drawn sample", facts["drawn sample"]["false alarms among normal"]["hits"], "<=", 0),
    ]
    conclude(claims, facts, args.output, "numpy", "pillow", "scipy")


if __name__ == "__main__":
    main()
