"""python benchmarks/leakage.py --csv FOLDER/train.csv [--per_kind 200] [--seed 0]

Leaks between splits on radiographs of which no two are alike: false alarms on the set as it is, then the recall of
planted leaks by kind, each the copy of an image in another split under another patient's name, and what is reported
besides. The whole check runs: reading, fingerprints, patients, bytes, pixels, near-duplicates.
"""

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from claims import Claim, conclude
from PIL import Image

from knee_siglip.validation.findings import Finding
from knee_siglip.validation.inspection import ImageFacts, inspect_images
from knee_siglip.validation.leakage import find_leaks
from knee_siglip.validation.near_duplicates import Pair, near_duplicate_pairs

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SPLITS = ("train", "val", "test")
MOST_CLIPPED = 0.2
LEAST_DEVIATION = 5
RESAMPLING = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


def unchanged(grey: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The same pixels; saved anew."""
    return grey


def recompressed(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG, quality 40-90."""
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=int(rng.integers(40, 91)))
    return np.array(Image.open(buffer))


def resized(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """0.5 to 2 times the size, the aspect ratio changed by up to 5 %."""
    scale, aspect = np.exp(rng.uniform(np.log(0.5), np.log(2))), rng.uniform(0.95, 1.05)
    size = round(grey.shape[1] * scale * aspect), round(grey.shape[0] * scale)
    return np.array(Image.fromarray(grey).resize(size, RESAMPLING[rng.integers(3)]))


def cropped(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Up to 5 % off some of the four sides, at least one by all of it."""
    edges = rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.5)
    edges[rng.integers(4)] = 0.05
    height, width = grey.shape
    top, bottom, left, right = (edges * (height, height, width, width)).astype(int)
    return grey[top : height - bottom, left : width - right]


def mirrored(grey: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Left to right."""
    return grey[:, ::-1]


def windowed(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A linear window, a gamma of 0.5-2 or brightness and contrast; what clips over 20 % or flattens is drawn again."""
    values = grey.astype(float)
    for _ in range(1000):
        low, high = np.percentile(values, [rng.uniform(0, 10), rng.uniform(90, 100)])
        ways = (
            (values - low) / max(high - low, 1),
            (values / 255) ** np.exp(rng.uniform(np.log(0.5), np.log(2))),
            (values * rng.uniform(0.6, 1.4) + rng.uniform(-50, 50)) / 255,
        )
        levels = ways[rng.integers(3)]
        result: np.ndarray = np.clip(np.rint(levels * 255), 0, 255).astype(np.uint8)
        if ((levels < 0) | (levels > 1)).mean() <= MOST_CLIPPED and result.std() >= LEAST_DEVIATION:
            return result
    return grey


def inverted(grey: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Bright and dark exchanged."""
    return 255 - grey


def several(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrored, cropped and resized."""
    return resized(cropped(mirrored(grey, rng), rng), rng)


CHANGES: dict[str, Change] = {
    "same pixels": unchanged,
    "recompressed": recompressed,
    "resized": resized,
    "cropped": cropped,
    "mirrored": mirrored,
    "windowed": windowed,
    "inverted": inverted,
    "mirrored, cropped and resized": several,
}


def check(table: pd.DataFrame) -> tuple[list[Finding], list[Pair], float]:
    """The product's leak check. Returns findings, near-duplicate pairs and the seconds of the search for them."""
    inspected = inspect_images(table["image_file"])
    facts = [inspected[name] for name in table["image_file"]]
    read = [fact for fact in facts if isinstance(fact, ImageFacts)]
    if len(read) < len(facts):
        raise SystemExit("some images cannot be read")
    columns = {name: [getattr(fact, name) for fact in read] for name in ("image_id", "pixel_id", "fingerprint")}
    table = table.assign(**columns, flags="")
    started = time.perf_counter()
    pairs = near_duplicate_pairs(table)
    seconds = time.perf_counter() - started
    return find_leaks(table, "error", pairs)[1], pairs, seconds


def plant(table: pd.DataFrame, per_kind: int, folder: Path, rng: np.random.Generator) -> pd.DataFrame:
    """The table with planted rows behind: `kind` is what was done, `origin` the row it was done to."""
    planted = []
    for kind in ("copied", *CHANGES, "other knee"):
        pool = table if kind != "other knee" else table[table["patient_id"].duplicated(keep=False)]
        if kind == "other knee":
            pool = pool.drop_duplicates("patient_id")
        for origin in rng.choice(pool.index.to_numpy(), min(per_kind, len(pool)), replace=False):
            row = table.loc[origin]
            split = str(rng.choice([name for name in SPLITS if name != row["split"]]))
            file = folder / f"{len(planted)}.png"
            patient = f"planted-{len(planted)}x"
            if kind == "copied":
                shutil.copy(row["image_file"], file)
            elif kind == "other knee":  # another picture, so that only the name gives it away
                patient = row["patient_id"]
                Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8)).save(file)
            else:
                grey = np.array(Image.open(row["image_file"]).convert("L"))
                changed = np.ascontiguousarray(CHANGES[kind](grey, rng))
                Image.fromarray(changed).save(file, compress_level=1)
            planted.append((str(file), str(file), split, patient, kind, int(origin)))
    names = ["img_path", "image_file", "split", "patient_id", "kind", "origin"]
    rows = pd.DataFrame(planted, columns=names)
    together = pd.concat([table.assign(kind="", origin=0)[names], rows], ignore_index=True)
    return together.set_index(pd.RangeIndex(2, len(together) + 2))


def found_rows(findings: list[Finding], check_name: str) -> set[int]:
    """Rows that findings of a check name, on either side."""
    return {
        row for finding in findings if finding.check == check_name for row in (finding.row, *finding.related) if row
    }


def main() -> None:
    """Measure, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--per_kind", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    table = pd.read_csv(args.csv, dtype=str, keep_default_na=False)
    table = table.assign(image_file=[str(args.csv.parent / name) for name in table["img_path"]])
    table = table.set_index(pd.RangeIndex(2, len(table) + 2))
    with tempfile.TemporaryDirectory() as name:
        os.environ["KNEE_SIGLIP_STORE"] = str(Path(name) / "store")
        false_alarms, _, seconds = check(table)
        together = plant(table, args.per_kind, Path(name), np.random.default_rng(args.seed))
        findings, pairs, planted_seconds = check(together)
    similarity = {(pair.row_a, pair.row_b): pair.similarity for pair in pairs}
    named = {kind: found_rows(findings, kind) for kind in ("patient_leak", "image_leak", "pixel_leak")}
    claims = [Claim("false alarms on the untouched set", len(false_alarms), "<=", 0)]
    lowest: dict[str, float] = {}
    origins = together.groupby("origin").groups
    for kind, rows in together[together["kind"] != ""].groupby("kind", sort=False):
        edges = {(int(origin), int(row)) for row, origin in rows["origin"].items()}
        check_name = {"copied": "image_leak", "same pixels": "pixel_leak", "other knee": "patient_leak"}.get(str(kind))
        if check_name:
            recall = np.mean([row in named[check_name] for _, row in edges])
        else:
            recall = np.mean([edge in similarity for edge in edges])
            lowest[str(kind)] = min((similarity[edge] for edge in edges if edge in similarity), default=0.0)
        claims.append(Claim(f"recall, {kind} ({len(rows)} planted)", float(recall), ">=", 1.0))
    origin = together["origin"].where(together["origin"] > 0, together.index.to_series())
    false_pairs = [pair for pair in similarity if origin[pair[0]] != origin[pair[1]]]
    claims.append(Claim("near-duplicates reported that were not planted", len(false_pairs), "<=", 0))
    facts = {
        "images": len(table),
        "seed": args.seed,
        "seconds_search": round(seconds, 1),
        "seconds_search_planted": round(planted_seconds, 1),
        "lowest_similarity": {kind: round(value, 3) for kind, value in lowest.items()},
        "origins_planted": len(origins) - 1,
    }
    print(facts)
    conclude(claims, facts, args.output, "numpy", "scipy", "pillow")


if __name__ == "__main__":
    main()
