"""python benchmarks/libraries.py --csv FOLDER/train.csv [--only NAME ...] [--per_kind 100] [--output FILE.json]

Libraries in the place of own code: what they would give. For what is our own the claims say by how much the library
falls short, so that a missed one means: look again. For language the library was taken, and the claims are its own.

- near_duplicates: imagehash's perceptual hashes, of every image in eight orientations and both signs, at the largest
  distance that gives no false alarm; faiss in the search for candidates. Leaks are planted as in leakage.py.
- language: py3langid as `validate` uses it, and lingua, on languages.csv and the CSV's impressions.
- privacy: Presidio's pattern recognisers (those of names need a model that is not on PyPI), on personal_data.csv.
- charts: one chart as inline SVG of our own and of matplotlib.

Needs: pip install ImageHash faiss-cpu lingua-language-detector presidio-analyzer
"""

import argparse
import re
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

from knee_siglip.imaging.decode.read import read_grey
from knee_siglip.validation.images.candidates import RELATIONS, fit_projection, turned, unit
from knee_siglip.validation.images.near_duplicates import SIDE, fingerprint

HERE = Path(__file__).parent
HASHED_SIDE = 256
HASH_SIDE = 16
CANDIDATES = 3
GALLERY, QUERIES = 20_000, 2_000
LEAST_SCORE = 0.4
"""Presidio's own default is 0; below this its numbers of driving licences are found in every measurement."""

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


COMPARISONS = {"near_duplicates": near_duplicates, "language": language, "privacy": privacy, "charts": charts}
PACKAGES = ("ImageHash", "faiss-cpu", "py3langid", "lingua-language-detector", "presidio-analyzer", "matplotlib")


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
    for name in args.only:
        found, facts[name] = COMPARISONS[name](args)
        claims += found
    conclude(claims, facts, args.output, *PACKAGES)


if __name__ == "__main__":
    main()
