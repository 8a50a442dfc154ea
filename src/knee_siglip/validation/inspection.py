"""What an image file holds: every file is decoded once, on all cores, and only small facts are kept."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from knee_siglip.data.images import ImageError, MissingImageError, decode, read_bytes
from knee_siglip.data.workers import available_cores, split_chunks, work_in_chunks

IMAGES_PER_CHUNK = 64


@dataclass(frozen=True)
class ImageFacts:
    """What stays of a decoded image.

    image_id: sha256 of the file; width, height: of the upright image in pixels; bits: per sample in the file; kind:
    format and mode, `PNG I;16`; file_bytes: the file's size; mean, std: of the grey levels, 0-255.
    """

    image_id: str
    width: int
    height: int
    bits: int
    kind: str
    file_bytes: int
    mean: float
    std: float


@dataclass(frozen=True)
class Failure:
    """Why a file gives no pixels; `check` names the kind in findings.csv."""

    check: str
    message: str


def inspect_images(names: Iterable[str]) -> dict[str, ImageFacts | Failure]:
    """Decode every distinct file. Returns what each file name led to."""
    workers = available_cores()
    chunks = split_chunks(sorted(set(names)), IMAGES_PER_CHUNK, workers)
    results = work_in_chunks(_inspect, chunks, workers, "Checking images")
    return {name: result for chunk in results for name, result in chunk}


def _inspect(names: Sequence[str]) -> list[tuple[str, ImageFacts | Failure]]:
    return [(name, inspect_image(Path(name))) for name in names]


def inspect_image(path: Path) -> ImageFacts | Failure:
    """Facts of one file, or why there are none."""
    try:
        data = read_bytes(path)
        grey, bits, kind = decode(data, path)
    except ImageError as error:
        return Failure("missing_image" if isinstance(error, MissingImageError) else "unreadable_image", str(error))
    height, width = grey.shape
    return ImageFacts(
        image_id=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        bits=bits,
        kind=kind,
        file_bytes=len(data),
        mean=float(grey.mean()),
        std=float(grey.std()),
    )
