"""python benchmarks/retrieval_scale.py [--pairs N] [--width D] [--output FILE]

Retrieval both ways over N images and N texts, two images to a study: seconds, peak memory of a process that does
nothing else, and whether the figures of some queries equal those of their full row of scores. Once with every text a
different one, once with the few texts that a template gives.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from claims import Claim, conclude

from knee_siglip.metrics.matching.retrieval import Correct, FirstCorrect, find_first_correct, retrieval_metrics
from knee_siglip.metrics.matching.similarity import cosine_scores

PAIRS, WIDTH = 100_000, 128
TEMPLATED = 1000
"""Distinct texts of the second run; the most frequent one has 3 % of the pairs."""
NOISE = 3.0
"""Length of the noise beside that of what image and text share: the right text is first now and then."""
CHECKED = 200
PEAK_GB = 4.0
DIRECTIONS = ("image_to_text", "text_to_image")


def draw(count: int, width: int, distinct: int) -> tuple[np.ndarray, np.ndarray, Correct]:
    """Image and text embeddings (count, width), L2-normalised float32, and what is correct."""
    rng = np.random.default_rng(0)
    text_ids = np.arange(count)
    if distinct < count:
        text_ids = np.minimum(distinct * rng.random(count) ** 2, distinct - 1).astype(np.int64)
    texts = _unit(rng.standard_normal((distinct, width), dtype=np.float32))[text_ids]
    noise = rng.standard_normal((count, width), dtype=np.float32) * np.float32(NOISE / width**0.5)
    return _unit(texts + noise), texts, Correct(text_ids, np.arange(count) // 2)


def largest_difference(queries: np.ndarray, candidates: np.ndarray, correct: Correct, found: FirstCorrect) -> float:
    """Of rank, reciprocal rank, recall@10 and average precision from those by full rows of scores, some queries."""
    rows = np.random.default_rng(1).choice(len(queries), min(CHECKED, len(queries)), replace=False)
    figures = (found.expected_rank(), found.expected_reciprocal_rank(), found.recall_at(10), found.average_precision())
    assert correct.study_ids is not None
    differences = []
    for row in rows:
        right = (correct.text_ids == correct.text_ids[row]) | (correct.study_ids == correct.study_ids[row])
        expected = by_full_row(cosine_scores(queries[row : row + 1], candidates)[0], right)
        differences += [abs(figure[row] - value) for figure, value in zip(figures, expected, strict=True)]
    return float(max(differences))


def by_full_row(scores: np.ndarray, right: np.ndarray) -> tuple[float, float, float, float]:
    """Expected rank, reciprocal rank, recall@10 and average precision of one query, position by position."""
    order = np.argsort(-scores, kind="stable")
    hits, starts = right[order], np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    before, found, none_so_far = 0, 0, 1.0
    first, precision = np.zeros(len(scores)), 0.0
    for size, inside in zip(np.diff([*starts, len(scores)]), np.add.reduceat(hits.astype(int), starts), strict=True):
        for drawn in range(size if inside else 0):
            position = before + drawn + 1
            others = drawn * (inside - 1) / (size - 1) if size > 1 else 0
            precision += inside / size * (found + 1 + others) / position
            if not found:
                chance = inside / (size - drawn) if size - drawn >= inside else 1.0
                first[position - 1] = none_so_far * chance
                none_so_far *= 1 - chance
        before, found = before + size, found + inside
    positions = np.arange(1, len(scores) + 1)
    return float(first @ positions), float(first @ (1 / positions)), float(first[:10].sum()), precision / found


def measure(count: int, width: int, distinct: int) -> dict[str, float]:
    """Seconds and metrics of both directions, largest difference from full rows, peak memory before these."""
    images, texts, correct = draw(count, width, distinct)
    figures: dict[str, float] = {}
    found = {}
    for direction, pair in zip(DIRECTIONS, ((images, texts), (texts, images)), strict=True):
        started = time.perf_counter()
        found[direction] = find_first_correct(*pair, correct)
        figures |= {f"{direction}.{name}": value for name, value in retrieval_metrics(found[direction]).items()}
        figures[f"{direction}.seconds"] = time.perf_counter() - started
    figures["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures["difference"] = max(
        largest_difference(images, texts, correct, found["image_to_text"]),
        largest_difference(texts, images, correct, found["text_to_image"]),
    )
    return figures


def in_a_process(count: int, width: int, distinct: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--one", str(count), str(width), str(distinct)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    seconds = ", ".join(f"{direction} {figures[f'{direction}.seconds']:.1f} s" for direction in DIRECTIONS)
    print(f"{distinct:,} distinct texts: {seconds}, peak {figures['peak_bytes'] / 1e9:.2f} GB", flush=True)
    return figures


def main() -> None:
    """Measure both, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    kinds = {"all_texts_distinct": args.pairs, "templated_texts": min(TEMPLATED, args.pairs)}
    found = {kind: in_a_process(args.pairs, args.width, distinct) for kind, distinct in kinds.items()}
    peak = max(figures["peak_bytes"] for figures in found.values()) / 1e9
    difference = max(figures["difference"] for figures in found.values())
    claims = [
        Claim(f"peak memory, {args.pairs:,} x {args.pairs:,}, width {args.width}", peak, "<=", PEAK_GB, "GB"),
        Claim(f"largest difference from full rows of scores, {CHECKED} queries each", difference, "<=", 1e-6),
    ]
    conclude(claims, {"pairs": args.pairs, "width": args.width, **found}, args.output, "numpy", "scipy")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
