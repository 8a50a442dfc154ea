"""python benchmarks/cache_build.py [--csv FILE] [--images N] [--parts png dicom adding] [--dvc] [--output FILE]

How near building the pixel cache comes to bare decoding, all cores on both sides, the least of alternating repeats:

    png      512 px PNG (--csv): reading and decoding only, with every decoder that is installed; the cache; Pillow,
             numpy and scipy doing the same transform. Peers: pip install imagecodecs pyspng-seunglab pywuffs
    dicom    2,000 px, drawn from the same images: JPEG 2000, and without a claim JPEG and uncompressed DICOM
    adding   1 % of new images to --cached ones, beside a full build and, with --dvc, beside DVC's own cost

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from claims import Claim, conclude
from decoders import DICOM_DECODERS, PNG_DECODERS, Decoder
from large_images import compressed_dicom, enlarged, jpeg, renamed_copies, uncompressed_dicom
from own_cost_of_dvc import dvc_seconds
from PIL import Image
from scipy import ndimage

from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.read import decode, read_bytes
from knee_siglip.imaging.fit.contrast import GREY_PER_STD, STD_FLOOR, WINDOW_SHARE, local_contrast
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.pixels import PixelStore
from knee_siglip.store.segments import RowWriter, Slot

SIZE = 224
TRANSFORM = Transform(SIZE, "pad", "local")
CHUNK = 64
Work = Callable[[Sequence[Path]], int]


def decode_bare(decoder: Decoder, files: Sequence[Path]) -> int:
    """Read and decode, nothing else."""
    for file in files:
        decoder.decode(file.read_bytes())
    return len(files)


def build_plainly(folder: Path, files: Sequence[Path]) -> int:
    """The obvious way to the same pixels: Pillow's Lanczos, scipy's box filters, `np.save`."""
    squares = []
    for file in files:
        with Image.open(file) as image:
            square = np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.LANCZOS), dtype=np.float32)
        side = round(WINDOW_SHARE * SIZE / 2) | 1
        deviation = square - plain_mean(square, side)
        std = np.sqrt(np.maximum(plain_mean(deviation**2, side), STD_FLOOR**2))
        squares.append(np.clip(np.rint(128 + GREY_PER_STD * deviation / std), 0, 255).astype(np.uint8))
    np.save(folder / f"{files[0].stem}.npy", np.stack(squares))
    return len(files)


def plain_mean(pixels: np.ndarray, side: int) -> np.ndarray:
    """Two box passes."""
    once = ndimage.uniform_filter(pixels, side, mode="nearest")
    mean: np.ndarray = ndimage.uniform_filter(once, side, mode="nearest")
    return mean


def seconds_of(work: Work, files: Sequence[Path]) -> float:
    """On all cores, handed out as the store's build hands it out."""
    started = time.perf_counter()
    for _ in work_in_chunks(work, files, CHUNK, "Measuring"):
        pass
    return time.perf_counter() - started


def seconds_of_build(ids: Sequence[str], files: Sequence[Path]) -> float:
    """Into a fresh store."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        PixelStore(Path(folder), TRANSFORM).ensure(ids, files)
        return time.perf_counter() - started


def ids_of(files: Sequence[Path]) -> list[str]:
    """sha256 of each file; also brings them into the page cache."""
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def compare(files: Sequence[Path], decoders: Sequence[Decoder], repeats: int) -> dict[str, float]:
    """Images per second of the cache, of each bare decoder and of the plain way."""
    ids = ids_of(files)
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float]] = {"knee-siglip": lambda: seconds_of_build(ids, files)}
        for decoder in decoders:
            ways[decoder.name] = partial(seconds_of, partial(decode_bare, decoder), files)
        if files[0].suffix != ".dcm":
            ways["Pillow + scipy"] = partial(seconds_of, partial(build_plainly, Path(folder)), files)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                seconds[name].append(way())
    return {name: len(files) / min(found) for name, found in seconds.items()}


def breakdown(files: Sequence[Path]) -> dict[str, float]:
    """Milliseconds per image of each step, one core, medians."""
    spent: dict[str, list[float]] = {}
    plain = Transform(SIZE, "pad", "none")
    with tempfile.TemporaryDirectory() as folder, RowWriter() as writer:

        def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
            return result

        for row, file in enumerate(files):
            data = timed("read", read_bytes, file)
            timed("hash of the file", lambda data: hashlib.sha256(data).hexdigest(), data)
            grey = timed("decode", decode, data, file).grey
            square = timed("contrast", local_contrast, timed("fit", plain, grey))
            timed("hash of the pixels", lambda square: hashlib.sha256(square).hexdigest(), square)
            timed("write", writer.write, Slot(Path(folder) / "rows", row), square)
    return {name: float(np.median(times)) for name, times in spent.items()}


def ratio(name: str, rates: dict[str, float], decoders: Sequence[Decoder], facts: dict[str, Any]) -> float:
    """Ours to the fastest bare decoder; prints and keeps all of them."""
    names = {decoder.name: decoder.licence for decoder in decoders}
    fastest = max(names, key=lambda decoder: rates[decoder])
    for way, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"{name}: {way} ({names.get(way, 'whole build')}): {rate:.1f} images/s")
    facts[name] = {"images_per_second": rates, "licences": names, "fastest": fastest}
    return rates["knee-siglip"] / rates[fastest]


def measure_png(files: Sequence[Path], repeats: int, facts: dict[str, Any]) -> list[Claim]:
    """Part `png`."""
    decoders = [decoder for decoder in PNG_DECODERS if decoder.is_installed()]
    figure = ratio("512 px PNG", compare(files, decoders, repeats), decoders, facts)
    facts["milliseconds"] = breakdown(files[:200])
    print("ms per image on one core:", {name: round(value, 3) for name, value in facts["milliseconds"].items()})
    return [Claim("building the cache / fastest bare decoding, 512 px PNG", figure, ">=", 0.8)]


def measure_dicom(files: Sequence[Path], repeats: int, facts: dict[str, Any]) -> list[Claim]:
    """Part `dicom`; `files` are enlarged to 2,000 px."""
    pictures = [decoder for decoder in DICOM_DECODERS if decoder.is_installed()]
    jpegs = [decoder for decoder in PNG_DECODERS if decoder.is_installed() and decoder.reads_jpeg]
    kinds = {
        "2,000 px JPEG 2000 DICOM": (compressed_dicom, ".dcm", pictures),
        "2,000 px uncompressed DICOM": (uncompressed_dicom, ".dcm", pictures[:1]),
        "2,000 px JPEG": (jpeg, ".jpg", jpegs),
    }
    figures = {}
    for kind, (encode, suffix, decoders) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            made = [Path(folder) / f"{number:03d}{suffix}" for number in range(len(files))]
            for number, (file, original) in enumerate(zip(made, files, strict=True)):
                file.write_bytes(encode(enlarged(original, number)))
            figures[kind] = ratio(kind, compare(made, decoders, repeats), decoders, facts)
    kind = "2,000 px JPEG 2000 DICOM"
    return [Claim(f"building the cache / fastest bare decoding, {kind}", figures[kind], ">=", 0.8)]


def measure_adding(files: Sequence[Path], count: int, with_dvc: bool, facts: dict[str, Any]) -> list[Claim]:
    """Part `adding`: `count` cached images, then 1 % more."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = renamed_copies(files, root / "images", count + count // 100)
        ids = ids_of(images)
        started = time.perf_counter()
        PixelStore(root / "store", TRANSFORM).ensure(ids[:count], images[:count])
        built = time.perf_counter()
        PixelStore(root / "store", TRANSFORM).ensure(ids, images)
        full, added = built - started, time.perf_counter() - built
        facts["adding"] = {"cached": count, "full_seconds": full, "added_seconds": added}
        if with_dvc:
            facts["adding"]["dvc_seconds"] = dvc_seconds(images[:count], images[count:], root / "dvc")
        print("adding 1 %:", facts["adding"])
    return [Claim(f"adding 1 % to {count:,} cached images / full build", 100 * added / full, "<=", 5, "%")]


def main() -> None:
    """Measure the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path("data/sample/train.csv"), help="names 512 px PNGs")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--dicoms", type=int, default=12)
    parser.add_argument("--cached", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("png", "dicom", "adding"), default=["png", "dicom", "adding"])
    parser.add_argument("--dvc", action="store_true", help="also DVC's own cost beside `adding` (minutes)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    files = [args.csv.parent / name for name in pd.read_csv(args.csv)["img_path"].head(args.images)]
    with Image.open(files[0]) as image:
        if image.size != (512, 512):
            raise SystemExit(f"{files[0]} has {image.width} x {image.height} pixels; this measures images of 512 x 512")
    facts: dict[str, Any] = {"load": os.getloadavg()}
    claims: list[Claim] = []
    if "png" in args.parts:
        claims += measure_png(files, args.repeats, facts)
    if "dicom" in args.parts:
        claims += measure_dicom(files[: args.dicoms], args.repeats, facts)
    if "adding" in args.parts:
        claims += measure_adding(files, args.cached, args.dvc, facts)
    conclude(claims, facts, args.output, "numpy", "pillow", "pydicom")


if __name__ == "__main__":
    main()
