"""python benchmarks/scale.py [--rows 1000000] [--only PART ...] [--output FILE]

What a manifest of a million rows costs each stage beside its images: processor seconds and peak memory of everything
that is done row by row. Each part runs in a process of its own:

- `csv`: reading the CSV;
- `validate`: all checks of validation, as if the images had been inspected and no two looked alike
  (validate_scale.py and near_duplicates_scale.py measure that);
- `split`: `knee-siglip split`'s assignment;
- `manifest`: reading it, and the patients and studies in it;
- `store`: opening the pixel store's index and finding every row in it;
- `tokens`: the training texts as tokens, a fifth of them distinct;
- `batches`: the order of an epoch and its batches without pixels;
- `evaluate`: predictions, headline metrics with intervals, subgroups and their files for a tenth of the rows, as if
  the retrieval had been done (retrieval_scale.py measures it).

Seconds are the processor's: the same beside other work. Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude

GIB = 2**20
"""ru_maxrss counts KiB."""

TARGETS = {
    "csv": (30, 3),
    "validate": (400, 8),
    "split": (120, 4),
    "manifest": (30, 3),
    "store": (30, 2),
    "tokens": (120, 3),
    "batches": (60, 2),
    "evaluate": (300, 4),
}
"""Processor seconds and GiB for a million rows; the seconds of fewer rows are held against their share."""

GRADES = ("no", "doubtful", "mild", "moderate", "severe")
TESTED = 10
"""One of so many rows is of the test split."""

WIDTH = 64
"""Of the embeddings."""


def image_id(number: int) -> str:
    """Stands for the sha256 of an image."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def rows(count: int) -> pd.DataFrame:
    """A CSV's rows: two images per patient, a fifth of the texts distinct."""
    numbers = np.arange(count)
    rng = np.random.default_rng(0)
    grades = rng.integers(0, 5, count)
    sides = np.where(numbers % 2, "left", "right")
    spurs = rng.integers(0, max(count // 50, 1), count)
    words = zip(grades.tolist(), sides.tolist(), spurs.tolist(), strict=True)
    splits = np.array(["test", "val", *["train"] * 8])
    return pd.DataFrame(
        {
            "img_path": [f"images/{number}.png" for number in range(count)],
            "impression": [f"{GRADES[g].capitalize()} OA of {side} knee, {spur} mm spur." for g, side, spur in words],
            "split": splits[numbers // 2 % TESTED],
            "patient_id": [f"P{number // 2}" for number in range(count)],
            "side": sides,
            "kl_grade": grades,
        }
    )


def manifest_of(folder: Path) -> pd.DataFrame:
    """As validation writes it."""
    from knee_siglip.tables.manifest import read_manifest

    return read_manifest(folder / "manifest.parquet")


def prepare(folder: Path, count: int) -> None:
    """The files that the parts read."""
    from knee_siglip.store.segments import Record, rewrite_log
    from knee_siglip.tables.manifest import write_manifest
    from knee_siglip.tables.text import normalise_text

    table = rows(count)
    table.to_csv(folder / "train.csv", index=False)
    ids = [image_id(number) for number in range(count)]
    made: dict[str, Any] = {"image_id": ids, "image_file": table["img_path"], "flags": ""}
    made |= {"width": 512, "height": 512, "bits": 8}
    table["kl_grade"] = table["kl_grade"].astype("Int64")
    write_manifest(table.assign(**made, text=table["impression"].map(normalise_text)), folder / "manifest.parquet")
    (folder / "images").mkdir()
    store = folder / "store"
    store.mkdir()
    pixels = store / "0.pixels"
    row_hash = hashlib.sha256(bytes(1)).hexdigest()  # readers compare it with the row
    rewrite_log(pixels, (Record(row, name, row_hash) for row, name in enumerate(ids)))
    with pixels.open("wb") as file:
        file.truncate(count)


def read_csv(folder: Path) -> None:
    """The `csv` part."""
    from knee_siglip.tables.table import read_table

    read_table(folder / "train.csv")


def run_validate(folder: Path) -> None:
    """Validation without images and the search among them."""
    from knee_siglip.params.files import parse_params
    from knee_siglip.validation import validate as module
    from knee_siglip.validation.images.inspection import ImageFacts

    def inspected(names: Iterable[str]) -> dict[str, ImageFacts]:
        found = {}
        for number, name in enumerate(names):
            key = image_id(number)
            mean = 99.0 + int(key[:4], 16) % 50
            found[name] = ImageFacts(key, key, 512, 512, 8, "PNG L", 9, mean, 40.0, 0.0, "", bytes(1024))
        return found

    def no_pairs(_: pd.DataFrame) -> list[Any]:
        return []

    vars(module).update(inspect_images=inspected, near_duplicate_pairs=no_pairs)
    os.chdir(folder)
    params = parse_params({"data": {"csv": "train.csv", "images": "images"}})
    encoder = Path(__file__).parents[1] / "src/knee_siglip/encoders/small/text"
    module.validate(params, folder / "written.parquet", folder / "report", encoder)


def run_split(folder: Path) -> None:
    """The assignment alone: its images' hashes take what reading them takes."""
    from knee_siglip.cli.split.assignment import split_table
    from knee_siglip.tables.table import read_table

    split_table(read_table(folder / "train.csv"), stratify=["kl_grade"])


def read_manifest(folder: Path) -> None:
    """The `manifest` part."""
    from knee_siglip.tables.ids import independent_units
    from knee_siglip.tables.manifest import number_groups

    manifest = manifest_of(folder)
    independent_units(manifest)
    number_groups(manifest, "study_id")


def open_store(folder: Path) -> None:
    """The `store` part."""
    from knee_siglip.core import paths
    from knee_siglip.store.rows import CachedRows, RowStore
    from knee_siglip.store.segments import pixel_rows

    store = RowStore(folder / "store", paths.PIXELS, pixel_rows(1), {})
    ids = manifest_of(folder)["image_id"].tolist()
    assert not store.missing(ids)
    cached = CachedRows(store, ids)
    assert len(cached[np.arange(0, len(cached), 1000)])


def make_tokens(folder: Path) -> None:
    """The `tokens` part."""
    from knee_siglip.encoders.backbones import SMALL_FOLDER
    from knee_siglip.metrics.matching.retrieval import number_texts
    from knee_siglip.pairs.batches import PairDataset
    from knee_siglip.tables.text import load_tokenizer, tokenize

    texts = manifest_of(folder)["text"]
    ids = number_texts(texts.tolist())
    tokens = tokenize(load_tokenizer(SMALL_FOLDER / "text"), texts.drop_duplicates().tolist(), 64)
    PairDataset(np.zeros((1, 1, 1), dtype=np.uint8), np.arange(len(texts)), tokens, ids)


def make_batches(folder: Path) -> None:
    """The `batches` part."""
    import torch

    from knee_siglip.pairs.batches import PairDataset, epoch_order, split_groups

    count = len(pd.read_parquet(folder / "manifest.parquet", columns=["split"]))
    pixels = np.broadcast_to(np.zeros((1, 1, 1), dtype=np.uint8), (count, 1, 1))
    pairs = PairDataset(pixels, np.arange(count), torch.zeros((1000, 64), dtype=torch.long), np.arange(count) % 1000)
    for group in split_groups(epoch_order(count, 0, 0), 64):
        pairs.batch(group)


def run_evaluate(folder: Path) -> None:
    """The tables of the test rows."""
    from knee_siglip.evaluation.embedded import EmbeddedSplit, PromptEmbeds
    from knee_siglip.evaluation.groups.studies import studies_table, study_predictions
    from knee_siglip.evaluation.groups.subgroups import subgroups_table
    from knee_siglip.evaluation.measurement import measure_headline
    from knee_siglip.evaluation.predictions import predictions_of, write_predictions
    from knee_siglip.metrics.matching.retrieval import FirstCorrect
    from knee_siglip.params.sections import EvaluateParams, Params
    from knee_siglip.params.tasks import task_of

    manifest = manifest_of(folder)
    numbers = np.flatnonzero(manifest["split"] == "test")
    rng = np.random.default_rng(0)
    task = task_of(Params())
    findings = {name: unit(rng.normal(size=(2, WIDTH))) for name in task.findings}
    split = EmbeddedSplit(
        name="test",
        rows=manifest.iloc[numbers].reset_index(drop=True),
        numbers=numbers,
        image_embeds=unit(rng.normal(size=(len(numbers), WIDTH))),
        text_embeds=unit(rng.normal(size=(len(numbers), WIDTH))),
        task=task,
        prompts=PromptEmbeds([unit(rng.normal(size=(1, WIDTH))) for _ in task.labels.values], findings),
        logit_scale=10.0,
        logit_bias=-2.0,
        batch_size=64,
    )
    higher = rng.integers(0, len(numbers), len(numbers))
    ones = np.ones(len(numbers), dtype=np.int64)
    found = FirstCorrect(higher, 0 * ones, ones, ones, 1 / (1 + higher))
    searches = {"image_to_text": found, "text_to_image": found}
    vars(split).update(searches=searches, strict_searches=searches)  # what the cached properties would compute
    params = EvaluateParams()
    predictions, studies = predictions_of(split, params), study_predictions(split, params)
    measure_headline(predictions)
    subgroups_table(predictions, params.subgroup_columns(split.task.labels.column))
    studies_table(split, predictions, studies)
    write_predictions(predictions, folder / "predictions.parquet")


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) float32 of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


PARTS: dict[str, Callable[[Path], None]] = {
    "csv": read_csv,
    "validate": run_validate,
    "split": run_split,
    "manifest": read_manifest,
    "store": open_store,
    "tokens": make_tokens,
    "batches": make_batches,
    "evaluate": run_evaluate,
}


def measure(part: str, folder: Path) -> dict[str, float]:
    """Processor seconds and peak GiB of a part in a process of its own, imports included."""
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{part} ended with {process.returncode}")
    return {"seconds": usage.ru_utime + usage.ru_stime, "gib": usage.ru_maxrss / GIB}


def main() -> None:
    """Measure the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        PARTS[args.part](args.folder)
        return
    claims: list[Claim] = []
    facts: dict[str, Any] = {"rows": args.rows, "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), args.rows)
        for part in args.only:
            facts[part] = found = measure(part, Path(name))
            print(part, json.dumps(found), flush=True)
            seconds, gib = TARGETS[part]
            allowed = max(seconds * args.rows / 1_000_000, 10)  # imports and fixed work
            claims.append(Claim(f"{part}: processor seconds for {args.rows:,} rows", found["seconds"], "<=", allowed))
            claims.append(Claim(f"{part}: peak memory", found["gib"], "<=", gib, "GiB"))
    facts["gib_of_this_process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    conclude(claims, facts, args.output, "numpy", "pandas", "torch")


if __name__ == "__main__":
    main()
