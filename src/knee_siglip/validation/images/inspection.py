"""Facts about image files: every file is decoded once, on all cores, and only small facts are kept."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from knee_siglip.core import paths
from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.inversion import inversion_probability
from knee_siglip.imaging.decode.read import ImageError, MissingImageError, decode, read_bytes
from knee_siglip.validation.images.facts import facts_key, known_ids, load_facts, save_facts
from knee_siglip.validation.images.near_duplicates import fingerprint

IMAGES_PER_CHUNK = 64

SAVED_EVERY = 60.0
"""Seconds of decoding that a killed run loses."""


@dataclass(frozen=True)
class ImageFacts:
    """What is kept of a decoded image.

    image_id: sha256 of the file; pixel_id: sha256 of the upright grey pixels; width, height: of the upright image, in
    pixels; bits: per sample in the file; kind: format and mode, `PNG I;16`; file_bytes: the file's size; mean, std: of
    the grey levels, 0-255; inverted: probability that bright and dark are exchanged; doubtful: a DICOM's
    elements that were passed over; fingerprint: see near_duplicates.py.
    """

    image_id: str
    pixel_id: str
    width: int
    height: int
    bits: int
    kind: str
    file_bytes: int
    mean: float
    std: float
    inverted: float
    doubtful: str
    fingerprint: bytes


NO_FACTS = ImageFacts("", "", 0, 0, 0, "", 0, 0.0, 0.0, 0.0, "", b"")
"""Stands in the table for an image that cannot be read."""


@dataclass(frozen=True)
class Failure:
    """Why a file gives no pixels; `check` names the kind in issues.csv."""

    check: str
    message: str


Result = ImageFacts | Failure


def inspect_images(names: Iterable[str]) -> dict[str, Result]:
    """Read every distinct file and decode those with new content. Returns the facts or the failure of each name."""
    folder = paths.store_root() / "facts" / facts_key()
    results: dict[str, Result | str] = {}
    fresh: list[dict[str, Any]] = []
    saved = time.monotonic()
    known_ids.cache_clear()
    try:
        inspect = partial(_inspect, folder)
        for chunk in work_in_chunks(inspect, sorted(set(names)), IMAGES_PER_CHUNK, "Checking images"):
            results.update(chunk)
            fresh += [vars(result) for _, result in chunk if isinstance(result, ImageFacts)]
            if time.monotonic() - saved > SAVED_EVERY:
                save_facts(folder, fresh)
                fresh, saved = [], time.monotonic()
    finally:
        save_facts(folder, fresh)
    return _with_known(results, folder)


def describe(data: bytes, image_id: str, path: Path) -> ImageFacts:
    """Decode a file's bytes, whose sha256 is image_id. path: only for the message of an `ImageError`."""
    image = decode(data, path)
    grey = image.grey
    height, width = grey.shape
    pixel_hash = hashlib.sha256(repr(grey.shape).encode())
    pixel_hash.update(np.ascontiguousarray(grey).data)
    return ImageFacts(
        image_id=image_id,
        pixel_id=pixel_hash.hexdigest(),
        width=width,
        height=height,
        bits=image.bits,
        kind=image.kind,
        file_bytes=len(data),
        mean=float(grey.mean()),
        std=float(grey.std()),
        inverted=inversion_probability(grey),
        doubtful=" ".join(image.doubtful),
        fingerprint=fingerprint(grey),
    )


def _inspect(folder: Path, names: Sequence[str]) -> list[tuple[str, Result | str]]:
    known = known_ids(folder)  # here, not passed along: every worker process reads it once
    return [(name, inspect_image(Path(name), known)) for name in names]


def inspect_image(path: Path, known: frozenset[str] = frozenset()) -> Result | str:
    """Facts of one file, or why there are none; only its id if that is `known`."""
    try:
        data = read_bytes(path)
        image_id = hashlib.sha256(data).hexdigest()
        return image_id if image_id in known else describe(data, image_id, path)
    except ImageError as error:
        return Failure("missing_image" if isinstance(error, MissingImageError) else "unreadable_image", str(error))


def _with_known(results: dict[str, Result | str], folder: Path) -> dict[str, Result]:
    """Replace ids by the saved facts."""
    wanted = {result for result in results.values() if isinstance(result, str)}
    known = load_facts(folder) if wanted else pd.DataFrame()
    rows = known[known.index.isin(wanted)].reset_index().to_dict("records")
    facts = {row["image_id"]: ImageFacts(**{str(name): value for name, value in row.items()}) for row in rows}
    complete: dict[str, Result] = {}
    for name, result in results.items():
        if isinstance(result, str):  # decoded again if the store was emptied meanwhile
            result = facts.get(result) or inspect_image(Path(name))
        assert not isinstance(result, str), "only known images are ids"
        complete[name] = result
    return complete
