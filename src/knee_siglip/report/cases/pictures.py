"""The cases' radiographs as files beside the browser: large enough to read, loaded one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from knee_siglip.core.processes import split_chunks, work_in_chunks
from knee_siglip.core.threads import available_cores
from knee_siglip.imaging.decode.read import ImageError, read_grey

SIDE = 768
"""Longest side in pixels; smaller originals stay as they are."""

QUALITY = 85
PICTURES_PER_CHUNK = 16


@dataclass(frozen=True)
class CasePicture:
    """file: name in the folder of pictures, empty where the image cannot be read; reason: why it cannot."""

    file: str
    reason: str = ""


def write_pictures(files: Mapping[str, str], folder: Path) -> dict[str, CasePicture]:
    """Write a JPEG of each image into `folder`, on all cores where there are many. files: image_id to path.

    Returns:
        image_id to its picture. The name of a picture tells nothing of the patient.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = available_cores()
    chunks = split_chunks(sorted(files.items()), PICTURES_PER_CHUNK, workers) if files else []
    written = work_in_chunks(partial(_write_chunk, folder=folder), chunks, workers, "Drawing cases")
    return dict(chain.from_iterable(written))


def _write_chunk(files: Sequence[tuple[str, str]], folder: Path) -> list[tuple[str, CasePicture]]:
    return [(image_id, _write(Path(file), folder / f"{image_id}.jpg")) for image_id, file in files]


def _write(source: Path, target: Path) -> CasePicture:
    try:
        image = Image.fromarray(read_grey(source))
    except ImageError as error:
        return CasePicture("", str(error).removeprefix(f"{source}: "))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    image.save(target, "JPEG", quality=QUALITY)
    return CasePicture(target.name)
