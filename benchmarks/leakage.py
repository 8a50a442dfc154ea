"""python benchmarks/leakage.py --csv FOLDER/train.csv [--per_kind 200] [--seed 0] [--sample data/sample/train.csv]

Leaks between splits, as `validate` reports them, on radiographs of which no two are alike: false alarms on the set as
it is and on the drawn sample, then the recall of planted leaks by kind and what is reported besides. A planted image is
a changed copy in another split under a patient of its own, each of another image; `several at once` is mirrored,
cropped, resized, windowed and saved as JPEG. For `other knee` one of a patient's two images moves to another split, the
patient's id written differently, in thirty ways.
"""

import argparse
import csv
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from claims import Claim, conclude
from PIL import Image

from knee_siglip.params.files import parse_params
from knee_siglip.validation.images.inspection import ImageFacts, inspect_images
from knee_siglip.validation.images.near_duplicates import near_duplicate_pairs
from knee_siglip.validation.outputs import ISSUES
from knee_siglip.validation.validate import validate

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SPLITS = ("train", "val", "test")
MOST_CLIPPED = 0.2
LEAST_DEVIATION = 5
LOOKED_FROM = 0.4
"""Similarity from which pairs of the untouched sets are reported as the nearest miss."""

RESAMPLING = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Reported:
    """A leak in issues.csv: the rows its message names, and the similarity where it tells one."""

    check: str
    rows: frozenset[int]
    similarity: float | None


def unchanged(grey: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The same pixels; saved anew."""
    return grey


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
    """Mirrored, cropped, resized and windowed."""
    return windowed(resized(cropped(mirrored(grey, rng), rng), rng), rng)


CHANGES: dict[str, tuple[Change, tuple[int, int] | None]] = {
    "same pixels": (unchanged, None),
    "recompressed": (unchanged, (40, 90)),
    "resized": (resized, None),
    "cropped": (cropped, None),
    "mirrored": (mirrored, None),
    "re-windowed": (windowed, None),
    "inverted": (inverted, None),
    "several at once": (several, (60, 90)),
}
"""What is done to the image, and the least and best quality of the JPEG file; a PNG where there is none."""

COPIED, OTHER_KNEE = "copied", "other knee"


def grouped(mark: str) -> Callable[[str], str]:
    """Spelling of a number with a mark between its thousands."""
    return lambda number: f"{int(number):,}".replace(",", mark)


RESPELT: tuple[Callable[[str], str], ...] = (
    *map(grouped, (",", ".", "'", " ", "\u00a0", "\u202f", "\u2009")),
    *(form.format for form in ("{}.0", "{}.00", "{},0", "00{}", " {} ", "{}\u3000", "{}\t")),
    *(form.format for form in ("'{}", "’{}", '"{}"', '="{}"', "{}\u200b", "\ufeff{}", "\u200e{}", "{}\u2060")),
    lambda number: f"{int(number):.{len(number) - 1}E}",
    lambda number: f"{int(number):.{len(number) - 1}e}",
    lambda number: f"{int(number):.{len(number)}E}",
    lambda number: f"{number[:3]}\u00ad{number[3:]}",
    lambda number: number.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)}),
    lambda number: number.translate({ord("0") + digit: 0x0660 + digit for digit in range(10)}),
    lambda number: number.translate({ord("0") + digit: 0x0966 + digit for digit in range(10)}),
    lambda number: f"\ufeff {int(number):,}.0 ",
)
"""Thirty spellings of one number by spreadsheets, data frames, keyboards and copied text."""


def leaks_found(table: pd.DataFrame, folder: Path) -> list[Reported]:
    """Run `validate` on the table and read what its issues.csv says of leaks."""
    folder.mkdir()
    table.to_csv(folder / "train.csv", index=False)
    params = parse_params(
        {"data": {"csv": str(folder / "train.csv"), "images": str(folder)}, "validate": {"on_leak": "warn"}}
    )
    validate(params, folder / "manifest.parquet", folder / "report", folder / "no-tokenizer")
    with (folder / "report" / ISSUES).open(encoding="utf-8", newline="") as file:
        found = [line for line in csv.DictReader(file) if line["check"].endswith("_leak")]
    return [_reported(line["check"], line["message"]) for line in found]


def _reported(check: str, message: str) -> Reported:
    named = re.findall(r"\(rows? ([0-9, ]+)", message)
    rows = frozenset(int(number) for numbers in named for number in numbers.split(",") if number.strip())
    similarity = re.search(r"similarity ([0-9.]+)", message)
    return Reported(check, rows, float(similarity.group(1)) if similarity else None)


def highest_miss(table: pd.DataFrame) -> float:
    """Largest similarity between splits in a set without leaks; 0 where none is above LOOKED_FROM."""
    inspected = inspect_images(table["img_path"])
    facts = [fact for name in table["img_path"] if isinstance(fact := inspected[name], ImageFacts)]
    if len(facts) < len(table):
        raise SystemExit("some images cannot be read")
    made = {name: [getattr(fact, name) for fact in facts] for name in ("pixel_id", "fingerprint")}
    pairs = near_duplicate_pairs(table.assign(image_file=table["img_path"], **made), LOOKED_FROM)
    return max((pair.similarity for pair in pairs), default=0.0)


def read_set(path: Path) -> pd.DataFrame:
    """A CSV with absolute image paths, by spreadsheet row."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["img_path"] = [str((path.parent / name).resolve()) for name in table["img_path"]]
    return table.set_index(pd.RangeIndex(2, len(table) + 2))


def plant(
    table: pd.DataFrame, per_kind: int, folder: Path, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table with leaks in it, and what was planted: kind, row and the row of the other side (origin)."""
    table, planted = move_knees(table, per_kind, rng)
    kinds = [kind for kind in (COPIED, *CHANGES) for _ in range(per_kind)]
    origins = rng.permutation(table.index.to_numpy())[: len(kinds)]
    if len(origins) < len(kinds):
        raise SystemExit(f"--per_kind {per_kind} needs {len(kinds)} images; there are {len(origins)}")
    rows = []
    for number, (kind, origin) in enumerate(zip(kinds, origins.tolist(), strict=True)):
        row = table.loc[origin].to_dict()
        file = write_changed(Path(row["img_path"]), kind, folder / str(number), rng)
        split = str(rng.choice([name for name in SPLITS if name != row["split"]]))
        rows.append(row | {"img_path": str(file), "split": split, "patient_id": f"planted-{number}x"})
        planted.append((kind, len(table) + 2 + number, origin))
    together = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return together, pd.DataFrame(planted, columns=["kind", "row", "origin"])


def move_knees(
    table: pd.DataFrame, count: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, list[tuple[str, int, int]]]:
    """One of a patient's two images goes to another split, under a respelt id."""
    table = table.copy()
    two = table.groupby("patient_id").filter(lambda rows: len(rows) == 2)["patient_id"].unique()
    moved = []
    for number, patient in enumerate(rng.permutation(two)[:count]):
        stays, goes = rng.permutation(table.index[table["patient_id"] == patient].to_numpy()).tolist()
        table.loc[goes, "patient_id"] = RESPELT[number % len(RESPELT)](patient)
        table.loc[goes, "split"] = rng.choice([name for name in SPLITS if name != table.at[stays, "split"]])
        moved.append((OTHER_KNEE, goes, stays))
    return table, moved


def write_changed(source: Path, kind: str, target: Path, rng: np.random.Generator) -> Path:
    """Save the changed image under the target's name with the format's suffix."""
    if kind == COPIED:
        return Path(shutil.copy(source, target.with_suffix(source.suffix)))
    change, quality = CHANGES[kind]
    with Image.open(source) as image:
        changed = Image.fromarray(np.ascontiguousarray(change(np.array(image.convert("L")), rng)))
    if quality:
        changed.save(target.with_suffix(".jpg"), quality=int(rng.integers(quality[0], quality[1] + 1)))
        return target.with_suffix(".jpg")
    changed.save(target.with_suffix(".png"), compress_level=1)
    return target.with_suffix(".png")


LEAST_RECALL = {"several at once": 0.9}
"""Of the other kinds every leak is to be found."""


def judge(planted: pd.DataFrame, found: list[Reported]) -> tuple[list[Claim], dict[str, float], list[int]]:
    """Recall by kind, least similarity by kind, and the rows of planted leaks that were missed."""
    by_pair: dict[frozenset[int], list[Reported]] = {}
    for leak in found:
        by_pair.setdefault(leak.rows, []).append(leak)
    claims: list[Claim] = []
    least: dict[str, float] = {}
    missed: list[int] = []
    for kind, rows in planted.groupby("kind", sort=False):
        hits = []
        for row, origin in zip(rows["row"], rows["origin"], strict=True):
            named = by_pair.get(frozenset((row, origin)), [])
            wanted = [leak for leak in named if (leak.check == "patient_leak") == (kind == OTHER_KNEE)]
            hits.append(bool(wanted))
            missed += [] if wanted else [int(row)]
            if similar := [leak.similarity for leak in wanted if leak.similarity is not None]:
                least[str(kind)] = min(least.get(str(kind), 1.0), *similar)
        claims.append(
            Claim(f"recall, {kind} ({len(rows)} planted)", float(np.mean(hits)), ">=", LEAST_RECALL.get(str(kind), 1.0))
        )
    pairs = {frozenset(pair) for pair in zip(planted["row"], planted["origin"], strict=True)}
    false_alarms = sum(leak.rows not in pairs for leak in found)
    return [*claims, Claim("leaks reported that were not planted", false_alarms, "<=", 0)], least, missed


def main() -> None:
    """Measure, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--per_kind", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=Path, default=Path(__file__).parents[1] / "data/sample/train.csv")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    claims, highest = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KNEE_SIGLIP_STORE"] = str(folder / "store")
        real = read_set(args.csv)
        sets = {"the untouched set": real}
        if args.sample.is_file():
            sets["the drawn sample"] = read_set(args.sample)
        for number, (what, table) in enumerate(sets.items()):
            found = leaks_found(table, folder / f"null-{number}")
            claims.append(Claim(f"leaks reported in {what} ({len(table)} images)", len(found), "<=", 0))
            highest[what] = round(highest_miss(table), 3)
        (folder / "planted").mkdir()
        together, planted = plant(real, args.per_kind, folder / "planted", np.random.default_rng(args.seed))
        judged, least, missed = judge(planted, leaks_found(together, folder / "leaking"))
    wrong = planted[planted["row"].isin(missed)]
    missing = {
        f"{kind}, {Path(str(real.at[origin, 'img_path'])).name}"
        for kind, origin in zip(wrong["kind"], wrong["origin"], strict=True)
    }
    facts = {
        "seed": args.seed,
        "least_similarity_found": least,
        "highest_similarity_without_leak": highest,
        "missed": sorted(missing),
    }
    print(facts)
    conclude([*claims, *judged], facts, args.output, "numpy", "scipy", "pillow")


if __name__ == "__main__":
    main()
