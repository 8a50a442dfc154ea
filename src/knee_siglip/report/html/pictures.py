"""Radiographs as small pictures inside the page."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import Image

from knee_siglip.core.processes import split_chunks, work_in_chunks
from knee_siglip.core.threads import available_cores
from knee_siglip.imaging.decode.read import ImageError, read_grey

SIDE = 208
"""Longest side in pixels: sharp at the 160 of the page also on a screen of finer pixels or on paper."""

QUALITY = 75
"""Of the JPEG: some kB for a radiograph."""

PICTURES_PER_CHUNK = 8


@dataclass(frozen=True)
class Picture:
    """uri: of a JPEG inside the page, empty where the file gives no pixels; reason: why it gives none."""

    uri: str
    reason: str = ""


def load_pictures(files: Iterable[str]) -> dict[str, Picture]:
    """Decode every distinct file, on all cores where there are many."""
    workers = available_cores()
    if not (names := sorted(set(files))):
        return {}
    chunks = split_chunks(names, PICTURES_PER_CHUNK, workers)
    loaded = work_in_chunks(_load_chunk, chunks, workers, "Drawing pictures")
    return dict(chain.from_iterable(loaded))


def load_picture(file: str) -> Picture:
    """One file, decoded as everywhere and shrunk."""
    try:
        grey = read_grey(Path(file))
    except ImageError as error:
        return Picture("", str(error).removeprefix(f"{file}: "))
    return picture_of(Image.fromarray(grey))


def picture_of(image: Image.Image, side: int = SIDE) -> Picture:
    """An image in memory, grey or RGB, whose longest side is shrunk to `side`."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def _load_chunk(files: Sequence[str]) -> list[tuple[str, Picture]]:
    return [(file, load_picture(file)) for file in files]
