"""Radiographs as small pictures inside a page, or as larger files beside it."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.read import ImageError, read_grey

SIDE, QUALITY = 208, 75
"""Longest side in pixels, sharp at the 160 of the page also on a finer screen or on paper; of the JPEG, some kB."""

FILE_SIDE, FILE_QUALITY = 768, 85
"""Of the files beside a page: large enough to read. Smaller originals stay as they are."""

PICTURES_PER_CHUNK, FILES_PER_CHUNK = 8, 16


@dataclass(frozen=True)
class Picture:
    """uri: of a JPEG inside the page or beside it, empty where the file gives no pixels; reason: why it gives none."""

    uri: str
    reason: str = ""


def load_pictures(files: Iterable[str]) -> dict[str, Picture]:
    """Decode every distinct file, on all cores where there are many."""
    loaded = work_in_chunks(_load_chunk, sorted(set(files)), PICTURES_PER_CHUNK, "Drawing pictures")
    return dict(chain.from_iterable(loaded))


def write_pictures(files: Mapping[str, str], folder: Path) -> dict[str, Picture]:
    """Write a JPEG of each image into a folder beside the page. files: image_id to path.

    Returns:
        image_id to its picture, whose name tells nothing of the patient.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_chunk = partial(_write_chunk, folder=folder)
    return dict(
        chain.from_iterable(work_in_chunks(write_chunk, sorted(files.items()), FILES_PER_CHUNK, "Drawing cases"))
    )


def load_picture(file: str) -> Picture:
    """One file, decoded as everywhere and shrunk."""
    return _decoded(Path(file), picture_of)


def picture_of(image: Image.Image, side: int = SIDE) -> Picture:
    """An image in memory, grey or RGB, whose longest side is shrunk to `side`."""
    buffer = io.BytesIO()
    _shrunk(image, side).save(buffer, "JPEG", quality=QUALITY)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")


def _load_chunk(files: Sequence[str]) -> list[tuple[str, Picture]]:
    return [(file, load_picture(file)) for file in files]


def _write_chunk(files: Sequence[tuple[str, str]], folder: Path) -> list[tuple[str, Picture]]:
    def write(image_id: str, image: Image.Image) -> Picture:
        target = folder / f"{image_id}.jpg"
        _shrunk(image, FILE_SIDE).save(target, "JPEG", quality=FILE_QUALITY)
        return Picture(f"{folder.name}/{target.name}")

    return [(image_id, _decoded(Path(file), partial(write, image_id))) for image_id, file in files]


def _decoded(file: Path, draw: Callable[[Image.Image], Picture]) -> Picture:
    try:
        return draw(Image.fromarray(read_grey(file)))
    except ImageError as error:
        return Picture("", str(error).removeprefix(f"{file}: "))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image
