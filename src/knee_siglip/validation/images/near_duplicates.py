"""Near-duplicates: the same radiograph resized, recompressed, cropped a little, mirrored, turned, windowed or inverted.

Three steps, each on what the one before left: projected fingerprints give candidates (candidates.py), fingerprints are
matched under crops, and what is promising is laid over each other at 128 pixels, read again from the files
(registration.py). Images without content (grey deviation below 3) have nothing to compare and are left out.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.decoded import ImageError
from knee_siglip.imaging.decode.read import read_grey
from knee_siglip.tables.manifest import ALL_SPLITS
from knee_siglip.validation.images.candidates import RELATIONS, Candidates, nearest, turned
from knee_siglip.validation.images.registration import (
    UNMOVED,
    align,
    coarse_match,
    continued,
    correlation,
    normalise,
    overlap,
    placed,
)

SIDE = 32
SIGMA = 2.0
SCALE = 32
FLATTEST = 3.0

FINE_SIDE = 128
ROUNDS = (3, 64)
"""Candidates looked at per image; the second number only where all of the first were near-duplicates."""

PROMISING = 0.7
"""Least correlation of fingerprints laid over each other; planted near-duplicates have 0.73 and more."""

THRESHOLD = 0.76
"""Least similarity of a near-duplicate. Different real knees reach 0.56, drawn ones of four seeds 0.70; planted copies
with one change 0.82 and more, some with several changes at once less. The features were chosen on half the patients of
2,100 real and 2,120 drawn radiographs and held against the rest. benchmarks/leakage.py measures it."""

BLOCK = 16
LEAST_CONTENT = 0.05
STILL, BONUS = 0.005, 0.35
"""An image that was not cropped comes to lie on its copy within 0.003 of the side; different knees, each laid on the
other as it fits best, missed by 0.0068 and more. So this is evidence of its own, in units of artanh, and saves copies
whose detail JPEG took."""

PAIRS_PER_CHUNK = 32


@dataclass(frozen=True)
class Pair:
    """Two rows (spreadsheet numbers) in different splits whose images show the same.

    similarity: see `similarity`; relation: how the one was made from the other; pixels_a, pixels_b: the pixel_id that
    stands for all rows of equal pixels.
    """

    row_a: int
    row_b: int
    similarity: float
    relation: str
    pixels_a: str
    pixels_b: str


class Suspect(NamedTuple):
    """Images `query` and `partner`, with their files, to be compared; the query is turned and signed first."""

    query: int
    partner: int
    files: tuple[str, str]
    turn: int
    sign: float


def fingerprint(grey: np.ndarray) -> bytes:
    """grey: uint8 (H, W). 1,024 bytes: local contrast at 32 x 32, int8; none for an image without content."""
    if min(grey.shape) < 2 or grey.std() < FLATTEST:
        return b""
    normal = normalise(_square(grey, SIDE), SIGMA)
    return np.clip(np.rint(normal * SCALE), -127, 127).astype(np.int8).tobytes()


def similarity(first: np.ndarray, second: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How alike images are when laid over each other, (N,), at most 1. first, second: grey (N, 128, 128).

    starts: placements (2, N, 4), the better of which counts. Two correlations of local contrast, the mean of their
    artanh: of coarse structure over the whole, and, counted twice, of finer structure in the second worst quarter of
    blocks, because different knees agree in some blocks, and copies in all.
    """
    halves = normalise(_half(first), 2.0), normalise(_half(second), 2.0)
    one, other = align(*halves, starts[0], 6), align(*halves, starts[1], 6)
    better = overlap(*halves, one) >= overlap(*halves, other)
    fine = normalise(first, 3.0), normalise(second, 3.0)
    placement = align(*fine, np.where(better[:, None], one, other), 4)
    moved, both = placed(second, placement)
    first, moved = continued(first, both), continued(moved, both)
    blocks = _lower_quartile(normalise(first, 3.0) * both, normalise(moved, 3.0) * both)
    whole = correlation(normalise(first, 6.0) * both, normalise(moved, 6.0) * both)
    evidence = np.arctanh(np.clip(np.stack([blocks, blocks, whole]), -0.99, 0.995)).mean(axis=0)
    still = np.abs(placement - UNMOVED).max(axis=1) < STILL
    return np.tanh(evidence + BONUS * still)


def near_duplicate_pairs(table: pd.DataFrame, threshold: float = THRESHOLD) -> list[Pair]:
    """Near-duplicates between splits. table: by spreadsheet row, with split, image_file, pixel_id and fingerprint.

    Rows of equal pixels count as one image, named by its first row; that they leak is another check's matter.
    """
    images = _distinct_images(table)
    queries = np.flatnonzero(images["splits"].to_numpy() > 1)  # in val or test: every pair has such a side
    search = _Search(images, threshold)
    for count in (*ROUNDS, len(images)):
        if not len(queries) or len(images) < 2:
            break
        queries = search.look(queries, count)
    return [search.found[key] for key in sorted(search.found)]


def _distinct_images(table: pd.DataFrame) -> pd.DataFrame:
    """One line per pixel_id: row, image_file, fingerprint, and as bits the splits it is in."""
    rows = table[table["split"].isin(ALL_SPLITS) & (table["fingerprint"].map(len) == SIDE * SIDE)]
    rows = rows.assign(
        row=rows.index, splits=rows["split"].map({name: 1 << bit for bit, name in enumerate(ALL_SPLITS)})
    )
    grouped = rows.groupby("pixel_id", sort=False)
    first = grouped[["row", "image_file", "fingerprint"]].first()
    distinct = rows.drop_duplicates(["pixel_id", "splits"])
    return first.assign(splits=distinct.groupby("pixel_id", sort=False)["splits"].sum())


class _Search:
    """The pairs found so far, and the keys (N * first + second) of those already compared."""

    def __init__(self, images: pd.DataFrame, threshold: float) -> None:
        self.rows, self.files = images["row"].tolist(), images["image_file"].tolist()
        self.pixels = images.index.tolist()
        self.splits = images["splits"].to_numpy()
        joined = np.frombuffer(b"".join(images["fingerprint"]), dtype=np.int8)
        self.prints = joined.reshape(len(images), SIDE, SIDE)
        self.threshold = threshold
        self.compared = np.empty(0, dtype=np.int64)
        self.found: dict[tuple[int, int], Pair] = {}

    def look(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Compare the `count` likeliest partners of each; returns the queries that may have more."""
        count = min(count, len(self.rows) - 1)
        near = nearest(self.prints, queries, self.splits, count)
        own = queries[near.query]
        keys = np.minimum(own, near.image) * len(self.rows) + np.maximum(own, near.image)
        self._compare(near, own, keys)
        full = np.bincount(near.query, minlength=len(queries)) == count
        found = [one * len(self.rows) + other for one, other in self.found]
        full[near.query[~np.isin(keys, found)]] = False
        return queries[full & (count < len(self.rows) - 1)]

    def _compare(self, near: Candidates, own: np.ndarray, keys: np.ndarray) -> None:
        """Compare those not compared before; sorted, so that a file is read once per chunk."""
        distinct, first = np.unique(keys, return_index=True)
        order = np.sort(first[~np.isin(distinct, self.compared)])
        self.compared = np.union1d(self.compared, distinct)
        suspects = [
            Suspect(one, other, (self.files[one], self.files[other]), turn, sign)
            for one, other, turn, sign in zip(
                own[order].tolist(),
                near.image[order].tolist(),
                near.orientation[order].tolist(),
                near.sign[order].tolist(),
                strict=True,
            )
        ]
        with tempfile.TemporaryDirectory() as folder:  # mapped, so that the workers share one copy of the fingerprints
            prints_file = Path(folder) / "prints.npy"
            np.save(prints_file, self.prints)
            judge = partial(_judge, prints_file)
            for results in work_in_chunks(judge, suspects, PAIRS_PER_CHUNK, "Comparing alike images"):
                for suspect, score in results:
                    if score >= self.threshold:
                        self._keep(suspect, score)

    def _keep(self, suspect: Suspect, score: float) -> None:
        one, other = sorted((suspect.query, suspect.partner))
        words = ([RELATIONS[suspect.turn]] if suspect.turn else []) + (["inverted"] if suspect.sign < 0 else [])
        relation = " and ".join(words) or "resized, recompressed, cropped or re-windowed"
        self.found[one, other] = Pair(
            self.rows[one], self.rows[other], score, relation, self.pixels[one], self.pixels[other]
        )


def match_fingerprints(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fingerprints (N, 32, 32). Returns the best correlation (N,) and the placements of two ways to it (N, 2, 4)."""
    boxed, boxes = coarse_match(first, second)
    aligned = align(first, second, np.tile(UNMOVED, (len(first), 1)), 8)
    return np.maximum(boxed, overlap(first, second, aligned)), np.stack([boxes, aligned], axis=1)


def _judge(prints_file: Path, suspects: Sequence[Suspect]) -> list[tuple[Suspect, float]]:
    """Match the fingerprints, then compare the images of what is promising; what can no longer be read is left out."""
    prints = np.load(prints_file, mmap_mode="r")
    upright = np.stack([s.sign * turned(prints[s.query], s.turn) for s in suspects]).astype(np.float32)
    partners = prints[[suspect.partner for suspect in suspects]].astype(np.float32)
    scores, starts = match_fingerprints(upright, partners)
    kept, first, second = [], [], []
    for number in np.flatnonzero(scores >= PROMISING).tolist():
        suspect = suspects[number]
        try:
            one, other = _read_square(suspect.files[0]), _read_square(suspect.files[1])
        except ImageError:  # gone since it was inspected
            continue
        kept.append(number)
        first.append(suspect.sign * turned(one, suspect.turn))
        second.append(other)
    if not kept:
        return []
    placements = starts[kept].transpose(1, 0, 2).astype(np.float32)
    alike = similarity(np.stack(first).astype(np.float32), np.stack(second), placements)
    return list(zip([suspects[number] for number in kept], alike.tolist(), strict=True))


def _lower_quartile(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Lower quartile of the correlations of blocks in which both have content, or 0. (N, S, S) each."""
    count = first.shape[-1] // BLOCK

    def summed(product: np.ndarray) -> np.ndarray:
        sums: np.ndarray = product.reshape(len(product), count, BLOCK, count, BLOCK).sum(axis=(2, 4))
        return sums.reshape(len(product), -1)

    one, other = summed(first * first), summed(second * second)
    correlations = summed(first * second) / np.sqrt(one * other + np.float32(1e-9))
    empty = np.minimum(one, other) < LEAST_CONTENT * BLOCK**2
    correlations[empty] = np.nan
    correlations[empty.all(axis=1)] = 0
    return np.nanquantile(correlations, 0.25, axis=1)


@lru_cache(maxsize=512)
def _read_square(file: str) -> np.ndarray:
    return _square(read_grey(Path(file)), FINE_SIDE)


def _square(grey: np.ndarray, side: int) -> np.ndarray:
    """Squashed to float32 (side, side), averaged without rounding where that matters."""
    image = Image.fromarray(grey)
    factor = min(image.size) // (4 * side)
    if factor > 1:
        image = image.reduce(factor)
    return np.array(image.convert("F").resize((side, side), Image.Resampling.HAMMING))


def _half(squares: np.ndarray) -> np.ndarray:
    """(N, S, S) to (N, S / 2, S / 2), averaged."""
    half = squares.shape[-1] // 2
    return squares.reshape(len(squares), half, 2, half, 2).mean(axis=(2, 4))
