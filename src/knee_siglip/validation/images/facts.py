"""What was found in images seen before: validating a slightly changed set decodes only what is new.

`<store>/facts/<key>/*.parquet`, a row per image, found by the sha256 of the file. The key is a hash of the code and
the libraries that make the facts, so that facts of older code are never taken for today's. Losing it costs time and
nothing else: whatever cannot be read or written is skipped.
"""

import hashlib
import logging
import uuid
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.imaging import decode
from knee_siglip.validation import images

logger = logging.getLogger(__name__)

SOURCES = (
    *sorted(Path(decode.__path__[0]).glob("*.py")),
    *(Path(images.__path__[0]) / name for name in ("inspection.py", "near_duplicates.py", "registration.py")),
)
LIBRARIES = ("numpy", "pillow", "pydicom", "scipy")


@lru_cache(maxsize=1)
def facts_key() -> str:
    """Hash of everything that decides which facts a file has."""
    digest = hashlib.sha256()
    for source in SOURCES:
        digest.update(source.read_bytes())
    digest.update(" ".join(version(library) for library in LIBRARIES).encode())
    return digest.hexdigest()[:16]


def load_facts(folder: Path) -> pd.DataFrame:
    """Facts of all images seen before, indexed by image_id; empty where there are none."""
    tables = [table for file in sorted(folder.glob("*.parquet")) if (table := _read(file)) is not None]
    known = pd.concat(tables) if tables else pd.DataFrame({"image_id": pd.Series(dtype=str)})
    return known.drop_duplicates("image_id").set_index("image_id")


@lru_cache(maxsize=1)
def known_ids(folder: Path) -> frozenset[str]:
    """Ids that `load_facts` would give; read once per process."""
    tables = [_read(file, ["image_id"]) for file in sorted(folder.glob("*.parquet"))]
    return frozenset(image_id for table in tables if table is not None for image_id in table["image_id"])


def save_facts(folder: Path, facts: Iterable[dict[str, object]]) -> None:
    """Add facts (dicts with an `image_id`) and unite all files into one.

    Safe beside other processes without a lock: each removes only what its own new file holds as well.
    """
    new = pd.DataFrame(list(facts))
    if new.empty:
        return
    old = {file: table for file in sorted(folder.glob("*.parquet")) if (table := _read(file)) is not None}
    united = pd.concat([*old.values(), new]).drop_duplicates("image_id")
    try:
        with atomic_file(folder / f"{uuid.uuid4().hex}.parquet") as file:
            united.to_parquet(file, index=False)
        for united_file in old:
            united_file.unlink(missing_ok=True)
    except (UserError, OSError) as error:
        logger.warning("facts about images could not be kept in %s (%s); they will be read again", folder, error)


def _read(file: Path, columns: list[str] | None = None) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(file, columns=columns)
    except (OSError, ValueError, KeyError):  # removed meanwhile by another process, or damaged
        return None
