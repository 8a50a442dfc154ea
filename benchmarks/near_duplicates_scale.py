"""python benchmarks/near_duplicates_scale.py [--images 200000] [--output benchmarks/near_duplicates_scale.json]

The search for near-duplicates among many fingerprints: a fifth of the images, in val and test, is looked for among all.
The fingerprints are synthetic, as alike as those of knees are: they share an average and a few hundred main directions.
Copies with some noise are planted. Measured: candidates (a matrix product that a bound prunes), the matching of
fingerprints, and whether 200 queries get what all of their products give. Reading the images that are left is not in
it: their number depends on the data. On paper, a million images: products grow with the square, matching linearly.
Seconds are the processor's, shared out among the cores: the same beside other work, which the clock is not.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import numpy as np
from claims import Claim, conclude
from scipy.ndimage import gaussian_filter

from knee_siglip.core.threads import available_cores
from knee_siglip.validation.images.candidates import Candidates, apart, fit_projection, nearest, turned, unit
from knee_siglip.validation.images.near_duplicates import PAIRS_PER_CHUNK, ROUNDS, match_fingerprints

SIDE = 32
DIRECTIONS = 300
PLANTED = 500
CHECKED = 200
MATCHED = 2000
MILLION = 1_000_000


def draw_prints(count: int) -> np.ndarray:
    """int8 (count, 32, 32); the last PLANTED are noisy copies of the first, every other one mirrored and inverted."""
    rng = np.random.default_rng(0)
    shapes = gaussian_filter(rng.normal(size=(DIRECTIONS, SIDE, SIDE)), (0, 1.5, 1.5)).reshape(DIRECTIONS, -1)
    shapes *= (16 / np.sqrt(np.arange(1, DIRECTIONS + 1)))[:, None]
    average = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2).reshape(-1) * 64
    prints = np.empty((count, SIDE, SIDE), dtype=np.int8)
    for start in range(0, count, 10_000):
        part = rng.normal(size=(min(10_000, count - start), DIRECTIONS)) @ shapes * 4 + average
        part += rng.normal(size=part.shape) * 4
        prints[start : start + len(part)] = np.clip(np.rint(part), -127, 127).reshape(-1, SIDE, SIDE)
    copies = prints[:PLANTED] + rng.normal(size=(PLANTED, SIDE, SIDE)) * 6
    copies[::2] = -copies[::2, :, ::-1]
    prints[-PLANTED:] = np.clip(np.rint(copies), -127, 127)
    return prints


def all_products(prints: np.ndarray, queries: np.ndarray, splits: np.ndarray, count: int) -> np.ndarray:
    """(Q, count) the nearest images by every product, in any order."""
    projection = fit_projection(prints)

    def project(part: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(part).reshape(len(part), -1).astype(np.float32)
        return unit(unit(flat) @ projection)

    gallery = np.concatenate([project(prints[start : start + 10_000]) for start in range(0, len(prints), 10_000)])
    best = np.zeros((len(queries), len(prints)), dtype=np.float32)
    for number in range(8):
        np.maximum(best, np.abs(project(turned(prints[queries], number)) @ gallery.T), out=best)
    best[~apart(splits[queries][:, None], splits[None])] = 0
    best[np.arange(len(queries)), queries] = 0
    return np.argpartition(-best, count - 1, axis=1)[:, :count]


def match_seconds(prints: np.ndarray, queries: np.ndarray, near: Candidates) -> float:
    """Seconds of all cores to match the fingerprints of a pair."""
    chosen = np.random.default_rng(0).permutation(len(near.query))[:MATCHED]
    pairs = [(queries[near.query[at]], near.image[at], near.orientation[at], near.sign[at]) for at in chosen.tolist()]
    chunks = [pairs[start : start + PAIRS_PER_CHUNK] for start in range(0, len(pairs), PAIRS_PER_CHUNK)]

    def match(chunk: list[tuple[int, int, int, float]]) -> int:
        upright = np.stack([sign * turned(prints[query], turn) for query, _, turn, sign in chunk])
        match_fingerprints(upright.astype(np.float32), prints[[image for _, image, _, _ in chunk]].astype(np.float32))
        return len(chunk)

    started = time.process_time()
    done = sum(map(match, chunks))
    return (time.process_time() - started) / done / available_cores()


def main() -> None:
    """Measure, and tell what a million images would take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    prints = draw_prints(args.images)
    splits = np.array([1, 1, 1, 1, 2, 1, 1, 1, 1, 4])[np.arange(args.images) // 2 % 10]
    splits[-PLANTED:], splits[:PLANTED] = 4, 1
    queries = np.flatnonzero(splits > 1)
    started, clock = time.process_time(), time.perf_counter()
    near = nearest(prints, queries, splits, ROUNDS[0])
    seconds, clock = (time.process_time() - started) / available_cores(), time.perf_counter() - clock
    print(f"candidates: {seconds:.0f} s of all cores, {clock:.0f} s by the clock, {len(near.query):,} pairs")
    planted = np.isin(near.image, np.arange(PLANTED)) & (near.image == queries[near.query] - (args.images - PLANTED))
    checked = np.sort(np.random.default_rng(0).permutation(len(queries))[:CHECKED])
    reference = all_products(prints, queries[checked], splits, ROUNDS[0])
    same = [set(near.image[near.query == at]) <= set(row) for at, row in zip(checked, reference.tolist(), strict=True)]
    per_pair = match_seconds(prints, queries, near)
    growth = MILLION / args.images
    million = seconds * growth**2 + per_pair * ROUNDS[0] * 2e5
    claims = [
        Claim(f"{args.images:,} images: candidates", seconds, "<=", 3600 / growth**2, "s"),
        Claim("a million images, candidates and matching, on paper", million / 60, "<=", 60, "minutes"),
        Claim(f"planted copies among the candidates (of {PLANTED})", float(planted.sum()) / PLANTED, ">=", 1),
        Claim(f"queries with the candidates of all products (of {CHECKED})", float(np.mean(same)), ">=", 1),
    ]
    facts = {
        "images": args.images,
        "queries": len(queries),
        "seconds": seconds,
        "clock_seconds": clock,
        "load": os.getloadavg(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "match_seconds_per_pair": per_pair,
    }
    conclude(claims, facts, args.output, "numpy", "scipy")


if __name__ == "__main__":
    main()
