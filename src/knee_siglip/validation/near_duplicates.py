"""Near-duplicates: the same radiograph resized, recompressed, cropped a little, mirrored, turned, windowed or inverted.

Three steps, each on what the one before left: projected fingerprints give candidates (candidates.py), the fingerprints
are matched under crops (registration.py), and the few best are compared at 128 pixels, read again from their files.
Images without content (grey deviation below 3) have nothing to compare and are left out.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from knee_siglip.data.grey import ImageError
from knee_siglip.data.images import read_grey
from knee_siglip.data.manifest import SPLITS
from knee_siglip.validation.candidates import ORIENTATIONS, RELATIONS, nearest
from knee_siglip.validation.registration import coarse_match, fine_match, normalise

SIDE = 32
SIGMA = 2.0
SCALE = 32
FLATTEST = 3.0

FINE_SIDE, FINE_SIGMA = 128, 3.0
ROUNDS = (5, 64)
"""Candidates looked at per image; the second number only where all of the first were near-duplicates."""

PROMISING = 0.65
"""Least correlation of fingerprints; planted near-duplicates have 0.67 and more."""

BEST = 2

THRESHOLD = 0.86
"""Least similarity of a near-duplicate. Different knees reach 0.833 in the drawn sample and not 0.72 in real
radiographs; crops, windows and sizes stay above 0.93."""

AGREEING, LOWER_BY = 0.92, 0.1
"""Where the fingerprints correlate this much, less is asked of the pixels: JPEG damages fine detail (down to 0.82) and
leaves the coarse (0.96); the alike of different knees have 0.88 there."""


@dataclass(frozen=True)
class Pair:
    """Two rows (spreadsheet numbers) in different splits whose images show the same.

    similarity: correlation of local contrast, 0-1; relation: how the one was made from the other; pixels_a, pixels_b:
    the pixel_id that stands for all rows of equal pixels.
    """

    row_a: int
    row_b: int
    similarity: float
    relation: str
    pixels_a: str
    pixels_b: str


def fingerprint(grey: np.ndarray) -> bytes:
    """grey: uint8 (H, W). 1,024 bytes: local contrast at 32 x 32, int8; none for an image without content."""
    if min(grey.shape) < 2 or grey.std() < FLATTEST:
        return b""
    normal = normalise(_square(grey, SIDE), SIGMA)
    return np.clip(np.rint(normal * SCALE), -127, 127).astype(np.int8).tobytes()


def near_duplicate_pairs(table: pd.DataFrame, threshold: float = THRESHOLD) -> list[Pair]:
    """Near-duplicates between splits. table: by spreadsheet row, with split, image_file, pixel_id and fingerprint.

    Rows of equal pixels count as one image, named by its first row; that they leak is another check's matter.
    """
    images = _distinct_images(table)
    queries = np.flatnonzero(images["splits"].to_numpy() > 1)  # in val or test: every pair has such a side
    if not len(queries) or len(images) < 2:
        return []
    search = _Search(images, threshold)
    for count in (*ROUNDS, len(images)):
        if not len(queries):
            break
        queries = search.look(queries, count)
    return [search.found[key] for key in sorted(search.found)]


def _distinct_images(table: pd.DataFrame) -> pd.DataFrame:
    """One line per pixel_id: row, image_file, fingerprint, and as bits the splits it is in."""
    rows = table[table["split"].isin(SPLITS) & (table["fingerprint"].map(len) == SIDE * SIDE)]
    rows = rows.assign(row=rows.index, splits=rows["split"].map({name: 1 << bit for bit, name in enumerate(SPLITS)}))
    grouped = rows.groupby("pixel_id", sort=False)
    first = grouped[["row", "image_file", "fingerprint"]].first()
    distinct = rows.drop_duplicates(["pixel_id", "splits"])
    return first.assign(splits=distinct.groupby("pixel_id", sort=False)["splits"].sum())


class _Search:
    """The pairs found so far, and those already compared."""

    def __init__(self, images: pd.DataFrame, threshold: float) -> None:
        self.rows, self.files = images["row"].tolist(), images["image_file"].tolist()
        self.pixels = images.index.tolist()
        self.splits = images["splits"].to_numpy()
        joined = np.frombuffer(b"".join(images["fingerprint"]), dtype=np.int8)
        self.prints = joined.reshape(len(images), SIDE, SIDE)
        self.threshold = threshold
        self.compared: set[tuple[int, int]] = set()
        self.found: dict[tuple[int, int], Pair] = {}

    def look(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Compare the `count` likeliest partners of each; returns the queries that may have more."""
        partners, orientations, signs = nearest(self.prints, queries, self.splits, count)
        more = []
        for place, query in enumerate(queries.tolist()):
            there = partners[place] >= 0
            chosen = partners[place][there], orientations[place][there], signs[place][there]
            if self._compare(query, *chosen) and there.all() and there.sum() < len(self.rows) - 1:
                more.append(query)
        return np.array(more, dtype=int)

    def _compare(self, query: int, partners: np.ndarray, orientations: np.ndarray, signs: np.ndarray) -> bool:
        """Most promising first, until two in a row are none. Returns whether all were near-duplicates."""
        turned = np.stack(
            [sign * ORIENTATIONS[turn](self.prints[query]) for turn, sign in zip(orientations, signs, strict=True)]
            or [self.prints[query]]
        ).astype(np.float32)
        if not len(partners):
            return False
        scores, edges = coarse_match(turned, self.prints[partners].astype(np.float32))
        misses = 0
        for index in np.argsort(-scores):
            if misses == BEST or scores[index] < PROMISING:
                return False
            least = self.threshold - (LOWER_BY if scores[index] >= AGREEING else 0)
            turn = int(orientations[index])
            hit = self._verify(query, int(partners[index]), turn, edges[index], signs[index], least)
            misses = 0 if hit else misses + 1
        return misses == 0

    def _verify(self, query: int, partner: int, turn: int, edges: np.ndarray, sign: float, least: float) -> bool:
        key = (min(query, partner), max(query, partner))
        if key not in self.compared:
            self.compared.add(key)
            try:
                first, second = _read_square(self.files[query]), _read_square(self.files[partner])
            except ImageError:  # gone since it was inspected
                return False
            turned = np.ascontiguousarray(ORIENTATIONS[turn](np.float32(sign) * first))
            similarity, _ = fine_match(turned, second, edges, FINE_SIGMA)
            if similarity >= least:
                one, other = key
                self.found[key] = Pair(
                    self.rows[one],
                    self.rows[other],
                    similarity,
                    _relation(turn, sign),
                    self.pixels[one],
                    self.pixels[other],
                )
        return key in self.found


def _relation(turn: int, sign: float) -> str:
    words = ([RELATIONS[turn]] if turn else []) + (["inverted"] if sign < 0 else [])
    return " and ".join(words) or "resized, recompressed, cropped or re-windowed"


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
