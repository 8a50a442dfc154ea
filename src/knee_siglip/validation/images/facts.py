"""Cache of facts about images: validating a slightly changed set decodes only what is new.

`<store>/facts/<key>/*.parquet`, a row per image, looked up by the sha256 of the file. The key is a hash of the code and
the libraries that make the facts, so facts of older code are never reused. Losing the cache only costs time: whatever
cannot be read or written is skipped.
"""

import hashlib
import logging
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
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
MUCH_LARGER = 4

LIBRARIES = ("numpy", "pillow", "pydicom", "scipy")


@lru_cache(maxsize=1)
def facts_key() -> str:
    """Hash of the code and the library versions that make the facts."""
    code = b"".join(source.read_bytes() for source in SOURCES)
    return hashlib.sha256(code + " ".join(map(version, LIBRARIES)).encode()).hexdigest()[:16]


def load_facts(folder: Path) -> pd.DataFrame:
    """Facts of all images seen before, indexed by image_id."""
    tables = _read(folder)
    known = pd.concat(tables.values()) if tables else pd.DataFrame({"image_id": pd.Series(dtype=str)})
    return known.drop_duplicates("image_id").set_index("image_id")


@lru_cache(maxsize=1)
def known_ids(folder: Path) -> frozenset[str]:
    """Ids that `load_facts` would give; read once per process."""
    return frozenset(image_id for table in _read(folder, ["image_id"]).values() for image_id in table["image_id"])


def save_facts(folder: Path, facts: Iterable[dict[str, object]]) -> None:
    """Add facts (dicts with an `image_id`) and merge them with files that are not much larger.

    So a row is written again only as often as the set doubles, and few files are left. Safe beside other processes and
    machines without a lock: each removes only files that its own new one contains.
    """
    new = pd.DataFrame(list(facts))
    if new.empty:
        return
    old: dict[Path, pd.DataFrame] = {}
    count = len(new)
    for path, ids in sorted(_read(folder, ["image_id"]).items(), key=lambda each: len(each[1])):
        if len(ids) > MUCH_LARGER * count:
            break
        old |= _read_files([path])
        count += len(ids)
    merged = pd.concat([*old.values(), new]).drop_duplicates("image_id")
    try:
        with atomic_file(folder / f"{uuid.uuid4().hex}.parquet") as file:
            merged.to_parquet(file, index=False)
        for merged_file in old:
            merged_file.unlink(missing_ok=True)
    except (UserError, OSError) as error:
        logger.warning("facts about images could not be kept in %s (%s); they will be read again", folder, error)


def _read(folder: Path, columns: list[str] | None = None) -> dict[Path, pd.DataFrame]:
    return _read_files(sorted(folder.glob("*.parquet")), columns)


def _read_files(files: Sequence[Path], columns: list[str] | None = None) -> dict[Path, pd.DataFrame]:
    tables = {}
    for file in files:
        with suppress(OSError, ValueError, KeyError):  # removed meanwhile by another process, or damaged
            tables[file] = pd.read_parquet(file, columns=columns)
    return tables
