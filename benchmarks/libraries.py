"""python benchmarks/libraries.py --csv FOLDER/train.csv [--only NAME ...] [--per_kind 100] [--output FILE.json]

Libraries in the place of own code: what they would give. For what is our own the claims say by how much the library
falls short, so that a missed one means: look again. For language the library was taken, and the claims are its own.

- near_duplicates: imagehash's perceptual hashes, of every image in eight orientations and both signs, at the largest
  distance that gives no false alarm; faiss in the search for candidates. Leaks are planted as in leakage.py.
- language: py3langid as `validate` uses it, and lingua, on languages.csv and the CSV's impressions.
- privacy: Presidio's pattern recognisers (those of names need a model that is not on PyPI), on personal_data.csv.
- charts: one chart as inline SVG of our own and of matplotlib.
- ranking: image-to-text retrieval by our own code, torchmetrics and faiss: CPU seconds, memory, and ties.

Needs: pip install ImageHash faiss-cpu lingua-language-detector presidio-analyzer torchmetrics
"""

import argparse
import multiprocessing
import re
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude
from leakage import OTHER_KNEE, plant, read_set
from PIL import Image
from retrieval_scale import draw as draw_pairs

from knee_siglip.imaging.decode.read import read_grey
from knee_siglip.metrics.matching.retrieval import Correct, find_first_correct, retrieval_metrics
from knee_siglip.validation.images.candidates import RELATIONS, fit_projection, turned, unit
from knee_siglip.validation.images.near_duplicates import SIDE, fingerprint

HERE = Path(__file__).parent
HASHED_SIDE = 256
HASH_SIDE = 16
CANDIDATES = 3
GALLERY, QUERIES = 20_000, 2_000
LEAST_SCORE = 0.4
"""Presidio's own default is 0; below this its numbers of driving licences are found in every measurement."""

RANKED_PAIRS = (300, 3_000, 30_000)
WIDTH = 128
QUERIES_MEASURED = 3_000
"""torchmetrics takes one query after the other: its seconds for more are those of the first ones, scaled."""

Result = tuple[list[Claim], dict[str, Any]]


@dataclass(frozen=True)
class Images:
    """Real knees with planted copies.

    greys: uint8 (N, 256, 256); prints: int8 (N, 32, 32); copies: kind, copy and origin, as places among the images.
    """

    greys: np.ndarray
    prints: np.ndarray
    splits: np.ndarray
    copies: list[tuple[str, int, int]]


def planted_images(source: Path, per_kind: int) -> Images:
    """Plant copies of each kind and read all images; positions in the table in place of spreadsheet rows."""
    with tempfile.TemporaryDirectory() as folder:
        table, planted = plant(read_set(source), per_kind, Path(folder), np.random.default_rng(0))
        greys, prints = [], []
        for file in table["img_path"]:
            grey = read_grey(Path(file))
            prints.append(np.frombuffer(fingerprint(grey), dtype=np.int8).reshape(SIDE, SIDE))
            resized = Image.fromarray(grey).resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.BOX)
            greys.append(np.array(resized))
    copies = [
        (kind, row - 2, origin - 2) for kind, row, origin in planted.itertuples(index=False) if kind != OTHER_KNEE
    ]
    return Images(np.stack(greys), np.stack(prints), table["split"].to_numpy(dtype=str), copies)


def near_duplicates(args: argparse.Namespace) -> Result:
    """Recall by kind of change of two hashes, and faiss against a matrix product."""
    import imagehash

    images = planted_images(args.csv, args.per_kind)
    facts: dict[str, Any] = {}
    for name in ("phash", "dhash"):
        facts[name] = _hash_recall(images, getattr(imagehash, name))
    prints = unit(images.prints.reshape(len(images.prints), -1).astype(np.float32))
    projected = unit(prints @ fit_projection(images.prints))
    bare, nearest = _among_nearest(images, prints), _among_nearest(images, projected)
    seconds, faiss_seconds = _search_seconds(projected.shape[1])
    best = max(facts[name]["recall"]["cropped"] for name in ("phash", "dhash"))
    claims = [
        Claim("imagehash: recall of cropped copies at no false alarm", best, "<=", 0.9),
        Claim("bare fingerprints: cropped copies among the nearest 3", bare, "<=", 0.99),
        Claim("our projection: cropped copies among the nearest 3", nearest, ">=", 1),
        Claim("our search for candidates takes, in faiss' time", seconds / faiss_seconds, "<=", 4),
    ]
    facts |= {"search_seconds": round(seconds, 2), "faiss_search_seconds": round(faiss_seconds, 2)}
    return claims, facts


def _hash_recall(images: Images, hashed: Callable[..., Any]) -> dict[str, Any]:
    """Recall by kind at the largest distance that reports no two images apart from the planted."""
    start = time.perf_counter()
    orientations = range(len(RELATIONS))
    signs = np.array([[_signs(hashed, turned(grey, each)) for each in orientations] for grey in images.greys])
    seconds = time.perf_counter() - start
    distance = np.full((len(signs), len(signs)), HASH_SIDE**2, dtype=np.float32)
    for orientation in orientations:
        product = np.abs(signs[:, orientation] @ signs[:, 0].T)  # the sign of an inverted image is turned
        np.minimum(distance, (HASH_SIDE**2 - product) / 2, out=distance)
    strange = images.splits[:, None] != images.splits[None]
    for _, copy, origin in images.copies:
        strange[copy, origin] = strange[origin, copy] = False
    nearest = float(distance[strange].min())
    found = pd.DataFrame([(kind, distance[copy, origin] < nearest) for kind, copy, origin in images.copies])
    recall = found.groupby(0, sort=False)[1].mean().round(3).to_dict()
    return {"recall": recall, "nearest_stranger_bits": nearest, "ms_per_image": round(seconds / len(signs) * 1e3, 1)}


def _signs(hashed: Callable[..., Any], grey: np.ndarray) -> np.ndarray:
    """The hash as (256,) -1 and 1."""
    bits = hashed(Image.fromarray(np.ascontiguousarray(grey)), HASH_SIDE).hash
    return np.where(bits.ravel(), 1, -1).astype(np.float32)


def _among_nearest(images: Images, vectors: np.ndarray) -> float:
    """Share of cropped copies whose origin is among the nearest vectors, as faiss finds them. vectors: (N, D)."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    pairs = [(copy, origin) for kind, copy, origin in images.copies if kind == "cropped"]
    _, nearest = index.search(vectors[[copy for copy, _ in pairs]], CANDIDATES + 1)  # one is the copy itself
    return float(np.mean([origin in row for (_, origin), row in zip(pairs, nearest, strict=True)]))


def _search_seconds(width: int) -> tuple[float, float]:
    """One orientation of QUERIES among GALLERY vectors, either sign: by matrix product, and by faiss."""
    import faiss

    rng = np.random.default_rng(0)
    gallery = unit(rng.standard_normal((GALLERY, width), dtype=np.float32))
    queries = unit(rng.standard_normal((QUERIES, width), dtype=np.float32))
    start = time.perf_counter()
    for block in np.split(queries, range(256, QUERIES, 256)):
        np.argpartition(-np.abs(block @ gallery.T), CANDIDATES - 1, axis=1)
    seconds = time.perf_counter() - start
    index = faiss.IndexFlatIP(width)
    index.add(gallery)
    start = time.perf_counter()
    for signed in (queries, -queries):
        index.search(signed, CANDIDATES)
    return seconds, time.perf_counter() - start


def language(args: argparse.Namespace) -> Result:
    """Foreign texts found and English ones suspected, of py3langid and of lingua."""
    from lingua import Language, LanguageDetectorBuilder

    from knee_siglip.validation.texts.language import foreign_language

    texts = pd.read_csv(HERE / "languages.csv", keep_default_na=False)
    english = [*texts.loc[texts["english"] == 1, "text"], *pd.read_csv(args.csv, dtype=str)["impression"].unique()]
    foreign = texts.loc[texts["english"] == 0, "text"].tolist()
    detector = LanguageDetectorBuilder.from_all_languages_with_latin_script().build()
    ways: dict[str, Callable[[str], bool]] = {
        "py3langid": lambda text: foreign_language(text) is not None,
        "lingua": lambda text: detector.detect_language_of(text) not in (None, Language.ENGLISH),
    }
    facts = {name: _judged(way, english, foreign) for name, way in ways.items()}
    return [
        Claim(f"py3langid: of {len(foreign)} foreign texts found", facts["py3langid"]["found"], ">=", 29),
        Claim(f"py3langid: of {len(english)} English texts suspected", facts["py3langid"]["suspected"], "<=", 0),
        Claim(f"lingua: of {len(english)} English texts suspected", facts["lingua"]["suspected"], ">=", 1),
    ], facts


def _judged(way: Callable[[str], bool], english: Sequence[str], foreign: Sequence[str]) -> dict[str, Any]:
    way(english[0])
    start = time.perf_counter()
    suspected = [text for text in english if way(text)]
    microseconds = (time.perf_counter() - start) / len(english) * 1e6
    found = sum(map(way, foreign))
    return {"found": found, "suspected": len(suspected), "microseconds": round(microseconds), "wrong": suspected[:10]}


def privacy(_: argparse.Namespace) -> Result:
    """Sentences in which personal data are found, and usual ones suspected."""
    from knee_siglip.validation.texts.privacy import personal_data

    start = time.perf_counter()
    recognise = _presidio()
    seconds = time.perf_counter() - start
    texts = pd.read_csv(HERE / "personal_data.csv", keep_default_na=False)
    personal = texts.loc[texts["kind"] != "", "text"].tolist()
    usual = texts.loc[texts["kind"] == "", "text"].tolist()
    theirs = _judged(recognise, usual, personal)
    ours = _judged(lambda text: bool(personal_data(text)), usual, personal)
    return [
        Claim(f"Presidio: of {len(personal)} texts with personal data found", theirs["found"], "<=", 15),
        Claim(f"our patterns: of {len(personal)} texts with personal data found", ours["found"], ">=", len(personal)),
        Claim(f"our patterns: of {len(usual)} usual texts suspected", ours["suspected"], "<=", 0),
    ], {"presidio": theirs | {"seconds_to_start": round(seconds, 1)}, "ours": ours}


def _presidio() -> Callable[[str], bool]:
    """Whether one of the recognisers that need no model finds something."""
    from presidio_analyzer import predefined_recognizers as known

    names = ("Email", "Phone", "Date", "UsSsn", "UsLicense", "MedicalLicense", "Nhs", "UsPassport")
    recognisers = [getattr(known, f"{name}Recognizer")() for name in names]

    def recognise(text: str) -> bool:
        found = (each for one in recognisers for each in one.analyze(text, one.supported_entities, None))
        return any(each.score >= LEAST_SCORE for each in found)

    return recognise


def charts(_: argparse.Namespace) -> Result:
    """One chart of two curves: bytes, time, and colours that no style sheet can change."""
    points = [(float(epoch), 1 / (1 + epoch)) for epoch in range(13)]
    ways = {"ours": _own_chart, "matplotlib": _matplotlib_chart}
    facts: dict[str, Any] = {}
    for name, draw in ways.items():
        draw(points)
        start = time.perf_counter()
        for _repeat in range(10):
            svg = draw(points)
        colours = len(set(re.findall("#[0-9a-f]{6}", svg)))
        milliseconds = (time.perf_counter() - start) * 100
        facts[name] = {"bytes": len(svg.encode()), "milliseconds": round(milliseconds, 1), "fixed_colours": colours}
    ours, theirs = facts["ours"], facts["matplotlib"]
    return [
        Claim("matplotlib: bytes of a chart, in ours", theirs["bytes"] / ours["bytes"], ">=", 3),
        Claim("matplotlib: time of a chart, in ours", theirs["milliseconds"] / ours["milliseconds"], ">=", 10),
        Claim("matplotlib: colours in the file, not in the style sheet", theirs["fixed_colours"], ">=", 1),
    ], facts


def _own_chart(points: Sequence[tuple[float, float]]) -> str:
    from knee_siglip.report.html.plots import Line, curves

    return str(curves("Loss by epoch", [Line(name, name, points) for name in ("train", "val")], "epoch"))


def _matplotlib_chart(points: Sequence[tuple[float, float]]) -> str:
    """Text as text; no date, so that equal charts are equal files."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "knee", "font.size": 8}):
        figure, axes = plt.subplots(figsize=(4.4, 1.9))
        for style in ("-", "--"):
            axes.plot(*np.transpose(points), style, marker=".")
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": "Loss by epoch"})
        plt.close(figure)
    return file.getvalue()


def ranking(_: argparse.Namespace) -> Result:
    """Cost where ten pairs share a text, as templated ones do; recall of a collapsed model."""
    facts: dict[str, Any] = {str(pairs): {name: _cost(name, pairs) for name in RANKERS} for pairs in RANKED_PAIRS}
    text_ids = np.repeat([0, 1], [90, 10])
    same = np.full((len(text_ids), WIDTH), WIDTH**-0.5, np.float32)
    orders = {"frequent_text_first": text_ids, "rare_text_first": text_ids[::-1]}
    facts["collapsed_recall_at_1"] = {
        name: {order: rank(same, same, ids)["recall_at_1"] for order, ids in orders.items()}
        for name, rank in RANKERS.items()
    }
    chance = float((np.bincount(text_ids) ** 2).sum() / len(text_ids) ** 2)
    off = {
        name: max(abs(recall - chance) for recall in found.values())
        for name, found in facts["collapsed_recall_at_1"].items()
    }
    seconds = {name: cost["cpu_seconds"] for name, cost in facts["30000"].items()}
    return [
        Claim("ours: ranking 30,000 pairs, peak memory", facts["30000"]["ours"]["gigabytes"], "<=", 1, "GB"),
        Claim("torchmetrics: time for 30,000 pairs, in ours", seconds["torchmetrics"] / seconds["ours"], ">=", 3),
        Claim("faiss, first ten only: time for 30,000 pairs, in ours", seconds["faiss"] / seconds["ours"], ">=", 0.1),
        Claim("ours: recall@1 of a collapsed model, distance from chance", off["ours"], "<=", 1e-9),
        Claim("torchmetrics: the same", off["torchmetrics"], ">=", 0.05),
        Claim("faiss: the same", off["faiss"], ">=", 0.05),
    ], facts


def _cost(name: str, pairs: int) -> dict[str, float]:
    """`_measure_ranking` in a process that does nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_ranking, (name, pairs))


def _measure_ranking(name: str, pairs: int) -> dict[str, float]:
    """CPU seconds of all threads, memory above that of the embeddings and libraries, and what was found."""
    images, texts, correct = draw_pairs(pairs, WIDTH, max(pairs // 10, 30))
    RANKERS[name](images[:20], texts[:20], correct.text_ids[:20])  # imports, first allocations
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    measured = min(pairs, QUERIES_MEASURED) if name == "torchmetrics" else pairs
    found = RANKERS[name](images[:measured], texts, correct.text_ids)
    seconds = (time.process_time() - start) * pairs / measured
    gigabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    return {"cpu_seconds": round(seconds, 3), "gigabytes": round(gigabytes, 3), **found}


def _our_ranking(images: np.ndarray, texts: np.ndarray, text_ids: np.ndarray) -> dict[str, float]:
    return retrieval_metrics(find_first_correct(images, texts, Correct(text_ids)))


def _torchmetrics_ranking(images: np.ndarray, texts: np.ndarray, text_ids: np.ndarray) -> dict[str, float]:
    """Query by query: its classes hold all N x N scores and query numbers, 15 GB for 30,000 pairs."""
    import torch
    from torchmetrics.functional.retrieval import (
        retrieval_average_precision,
        retrieval_hit_rate,
        retrieval_reciprocal_rank,
    )

    candidates, ids = torch.from_numpy(texts), torch.from_numpy(text_ids.copy())
    rows = []
    for number, image in enumerate(torch.from_numpy(images)):
        scores = (candidates @ image + 1) / 2  # what scores 0 or less would never count as found
        target = ids == ids[number]
        hits = [retrieval_hit_rate(scores, target, top_k=k) for k in (1, 5, 10)]
        rows.append([*hits, retrieval_reciprocal_rank(scores, target), retrieval_average_precision(scores, target)])
    means = np.array(rows, dtype=np.float64).mean(axis=0)
    return dict(zip(("recall_at_1", "recall_at_5", "recall_at_10", "mrr", "map"), map(float, means), strict=True))


def _faiss_ranking(images: np.ndarray, texts: np.ndarray, text_ids: np.ndarray) -> dict[str, float]:
    """It returns the best k: a rank beyond them, and with it median rank, MRR and average precision, stay unknown."""
    import faiss

    index = faiss.IndexFlatIP(texts.shape[1])
    index.add(texts)
    _, nearest = index.search(images, 10)
    hits = text_ids[nearest] == text_ids[: len(images), None]
    return {f"recall_at_{k}": float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)}


RANKERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]] = {
    "ours": _our_ranking,
    "torchmetrics": _torchmetrics_ranking,
    "faiss": _faiss_ranking,
}

COMPARISONS: dict[str, tuple[Callable[[argparse.Namespace], Result], tuple[str, ...]]] = {
    "near_duplicates": (near_duplicates, ("ImageHash", "faiss-cpu")),
    "language": (language, ("py3langid", "lingua-language-detector")),
    "privacy": (privacy, ("presidio-analyzer",)),
    "charts": (charts, ("matplotlib",)),
    "ranking": (ranking, ("torchmetrics", "faiss-cpu")),
}
"""Each with the packages whose versions go into the result."""


def main() -> None:
    """Measure, print target beside figure, fail where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--only", choices=COMPARISONS, nargs="+", default=list(COMPARISONS))
    parser.add_argument("--per_kind", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    claims: list[Claim] = []
    facts: dict[str, Any] = {}
    packages: list[str] = []
    for name in args.only:
        compare, needed = COMPARISONS[name]
        found, facts[name] = compare(args)
        claims += found
        packages += needed
    conclude(claims, facts, args.output, *packages)


if __name__ == "__main__":
    main()
