"""The files below a folder, and the image that a table's cell means."""

import fnmatch
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from posixpath import splitext

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import files_below
from knee_siglip.imaging.decode.dicom import SUFFIXES as DICOM_SUFFIXES

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
IMAGES = PICTURES | DICOM_SUFFIXES
TABLES = {".csv", ".tsv", ".parquet", ".xls", ".xlsx", ".xlsm", ".gz", ".txt"}
NOT_FOUND, AMBIGUOUS = "no such image below {}", "several images below {} have that name"


class Files:
    """All files below `root`, hidden ones and what an import wrote left out. names: relative, with `/`, sorted."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(f"{root} is no folder")
        self.root = root
        self.names = sorted(file.relative_to(root).as_posix() for file in files_below(root))
        self.images = [name for name in self.names if is_image_name(name)]
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for name in self.images:
            self._by_key[_key(name)].append(name)

    def matching(self, pattern: str) -> list[str]:
        """Names that end like the pattern (`*` within its parts), whatever their case."""
        wanted = f"*/{pattern}".casefold()
        return [name for name in self.names if fnmatch.fnmatchcase(f"/{name}".casefold(), wanted)]

    def locate(self, cells: Sequence[str]) -> list[str | None]:
        """The image that each cell names, by path, by file name or by its name without suffix; else None.

        A cell's folders must agree with the image's as far as both tell them. What all cells have in common at their
        start may differ: it is where the data lay when the table was written. Where no two cells have the same file
        name, the name alone is enough. Two images for one cell are none.
        """
        parts = [_parts(cell) for cell in cells]
        known = [part for part in parts if part]
        shared = common_length([tuple(part[:-1]) for part in known])
        repeated = Counter(_key(part[-1]) for part in known)
        return [self._image(part, shared, repeated[_key(part[-1])] == 1) if part else None for part in parts]

    def _image(self, parts: list[str], shared: int, distinct: bool) -> str | None:
        candidates = self._by_key.get(_key(parts[-1]), [])
        found = [name for name in candidates if _agree(parts, _parts(name))]
        found = found or [name for name in candidates if _agree(parts[shared:], _parts(name))]
        if not found and distinct:
            found = candidates
        if len(found) > 1:
            found = [name for name in found if name.rpartition("/")[2].casefold() == parts[-1].casefold()] or found
        return found[0] if len(found) == 1 else None


def is_image_name(name: str) -> bool:
    """Whether a file's suffix may be an image's."""
    return splitext(name)[1].lower() in PICTURES or is_dicom_name(name)


def is_dicom_name(name: str) -> bool:
    """Whether a file's suffix may be a DICOM's: those of a PACS have none or a number, and only their content tells."""
    suffix = splitext(name)[1].lower()
    return suffix in DICOM_SUFFIXES or not suffix or suffix[1:].isdecimal()


def is_table_name(name: str) -> bool:
    """Whether a file's suffix may be a table's."""
    return splitext(name)[1].lower() in TABLES


def bare_name(name: str) -> str:
    """A file's name without its image suffixes: `1_IM-0001-4001` for `images/1_IM-0001-4001.dcm.png`."""
    name = name.rpartition("/")[2]
    while (parts := splitext(name))[1].lower() in IMAGES and parts[0]:
        name = parts[0]
    return name


def common_length(paths: Sequence[tuple[str, ...]]) -> int:
    """Number of first parts that all the paths have in common."""
    first, last = min(paths, default=()), max(paths, default=())
    pairs = zip(first, last, strict=False)
    return next((at for at, (one, two) in enumerate(pairs) if one != two), min(len(first), len(last)))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", bare_name(name)).casefold()


def _parts(cell: str) -> list[str]:
    """`C:\\images\\a.png` and `./images/a.png` to their parts."""
    cell = unicodedata.normalize("NFC", cell.strip()).replace("\\", "/")
    return [part for part in cell.split("/") if part not in ("", ".")]


def _agree(parts: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the folders of two paths are equal, counted from the file, as far as both go."""
    count = min(len(parts), len(other))
    return all(one.casefold() == two.casefold() for one, two in zip(parts[-count:-1], other[-count:-1], strict=True))
