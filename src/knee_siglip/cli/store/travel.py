"""Pack the pixel store into one tar file, to train on a machine that never sees the originals.

    store.json        version of this format, the transform, number of images, sha256 of the next four and of itself
    ids.txt           a line `image_id pixel_hash` per image
    files/...         manifest.parquet, index.parquet, cache.json: what training reads beside the pixels
    pixels            uint8 (N, S, S) in the order of ids.txt

Uncompressed, because grey pixels hardly shrink; equal content gives equal bytes.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file, lock
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.filling import add_rows
from knee_siglip.store.pixels import PixelStore, read_cache_facts
from knee_siglip.tables.manifest import read_manifest

FORMAT = 2
HEADER, IDS, PIXELS, FILES = "store.json", "ids.txt", "pixels", "files/"
HASH = re.compile("[0-9a-f]{64}")
ROWS_AT_ONCE = 256

OnDifference = Literal["refuse", "overwrite", "leave"]


@dataclass(frozen=True)
class CacheFiles:
    """What training reads beside the pixels: in a project, outs of validate and preprocess."""

    manifest: Path
    index: Path
    facts: Path

    def by_name(self) -> dict[str, Path]:
        """Names in the tar."""
        return {"manifest.parquet": self.manifest, "index.parquet": self.index, "cache.json": self.facts}


@dataclass(frozen=True)
class Unpacked:
    """images: in the tar; added: those that the store lacked; files: written beside them."""

    images: int
    added: int
    files: list[Path]


def pack(root: Path, files: CacheFiles, out: Path) -> int:
    """Write the pixels of the manifest's images, with the current transform, and the files to `out`.

    Returns the number of images.

    Raises:
        UserError: preprocess has not run; pixels are missing or damaged; `out` cannot be written.
    """
    store = PixelStore(root, Transform.from_dict(read_cache_facts(files.facts)["transform"]))
    ids = list(dict.fromkeys(read_manifest(files.manifest)["image_id"]))
    hashes = store.row_hashes(ids)
    lines = "".join(f"{image_id} {pixel_hash}\n" for image_id, pixel_hash in zip(ids, hashes, strict=True))
    members = {IDS: lines.encode()} | {FILES + name: _read(path) for name, path in files.by_name().items()}
    facts = {
        "format": FORMAT,
        "transform": store.transform.to_dict(),
        "images": len(ids),
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
    }
    header = facts | {"digest": _digest(facts)}

    with atomic_file(out) as file, tarfile.open(fileobj=file, mode="w") as tar:
        _add(tar, HEADER, json.dumps(header, indent=2).encode())
        for name, data in members.items():
            _add(tar, name, data)
        size = len(ids) * store.transform.image_size**2
        _add_stream(tar, PIXELS, size, _checked_rows(store, ids, hashes))
    return len(ids)


def unpack(source: Path, root: Path, files: CacheFiles, on_difference: OnDifference = "refuse") -> Unpacked:
    """Add a tar's pixels to the store, then write its files. Safe to repeat and to interrupt.

    on_difference: where one of the files is there with another content. Nothing but the named members is read, and
    nothing is written but the store and `files`, whatever the tar contains.

    Raises:
        UserError: no such file, or damaged, or of another version; files that differ; a full disk.
    """
    if not source.is_file():
        raise UserError(f"{source} does not exist, or is no file")
    try:
        with tarfile.open(source, "r:") as tar:
            facts = _header(tar)
            found = {path: _checked(tar, FILES + name, facts) for name, path in files.by_name().items()}
            _changed(found, on_difference)
            added = _unpack_pixels(tar, PixelStore(root, Transform.from_dict(facts["transform"])), facts)
    except (tarfile.TarError, KeyError, TypeError, ValueError, EOFError, RecursionError) as error:
        raise UserError(f"{source} is damaged or was not written by `store pack` ({error}); copy it again") from None
    with lock(root.with_name("unpack.lock"), "unpacking"):
        changed = _changed(found, on_difference)  # again: another one may have written its own meanwhile
        for path, content in changed.items():
            with atomic_file(path) as file:
                file.write(content)
    return Unpacked(facts["images"], added, list(changed))


def _unpack_pixels(tar: tarfile.TarFile, store: PixelStore, facts: Mapping[str, Any]) -> int:
    """Returns how many images were added; the others are verified all the same."""
    side, images = store.transform.image_size, facts["images"]
    pairs = [line.split(" ") for line in _checked(tar, IDS, facts).decode("ascii").splitlines()]
    if len(pairs) != images or tar.getmember(PIXELS).size != images * side**2:
        raise ValueError("its ids and pixels are not as many as it says")
    if not all(len(pair) == 2 and HASH.fullmatch(pair[0]) and HASH.fullmatch(pair[1]) for pair in pairs):
        raise ValueError("its ids are no hashes")
    with store.filling():
        wanted = store.missing([image_id for image_id, _ in pairs])
        squares = _checked_squares(_member(tar, PIXELS), pairs, side)
        added = (square for square in squares if square[0] in wanted)
        add_rows(store.folder, store.segments, store.layout, len(wanted), added)
    return len(wanted)


def _checked_squares(pixels: IO[bytes], pairs: Iterable[list[str]], side: int) -> Iterator[tuple[str, str, np.ndarray]]:
    for image_id, pixel_hash in pairs:
        data = pixels.read(side**2)
        if len(data) < side**2 or hashlib.sha256(data).hexdigest() != pixel_hash:
            raise ValueError(f"the pixels of image {image_id} are not those of their hash")
        yield image_id, pixel_hash, np.frombuffer(data, dtype=np.uint8).reshape(side, side)


def _checked_rows(store: PixelStore, ids: Sequence[str], hashes: Sequence[str]) -> Iterator[bytes]:
    places = store.locate(ids)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        chunk = slice(start, start + ROWS_AT_ONCE)
        pixels = store.read(places[chunk])
        for square, image_id, pixel_hash in zip(pixels, ids[chunk], hashes[chunk], strict=True):
            if hashlib.sha256(square.data).hexdigest() != pixel_hash:
                raise UserError(f"{store.folder}: pixels of image {image_id} are damaged; run store verify --repair")
        yield pixels.tobytes()


def _header(tar: tarfile.TarFile) -> dict[str, Any]:
    facts = json.load(_member(tar, HEADER))
    if facts["format"] != FORMAT:
        raise UserError(
            f"{tar.name!r} has format {facts['format']}, this knee-siglip reads {FORMAT}; use the same version"
        )
    if facts.pop("digest") != _digest(facts):
        raise ValueError(f"{HEADER} is not that of its digest")
    return dict(facts)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; run dvc repro preprocess") from None


def _checked(tar: tarfile.TarFile, name: str, facts: Mapping[str, Any]) -> bytes:
    """A member whose content has the digest noted in store.json."""
    data = _member(tar, name).read()
    if hashlib.sha256(data).hexdigest() != facts["sha256"][name]:
        raise ValueError(f"{name} is not that of its digest")
    return data


def _changed(found: Mapping[Path, bytes], on_difference: OnDifference) -> dict[Path, bytes]:
    """The files to write; see `unpack`."""
    if on_difference == "leave":
        return {}
    changed = {path: data for path, data in found.items() if not path.exists() or path.read_bytes() != data}
    differing = [str(path) for path in changed if path.exists()]
    if differing and on_difference == "refuse":
        raise UserError(
            f"{' and '.join(differing)} differ from those that were packed; --overwrite takes the packed ones, "
            "--pixels_only adds the pixels and leaves yours"
        )
    return changed


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    """A plain file of the tar; KeyError where there is none. A sparse one may pretend any length, so it is none."""
    info = tar.getmember(name)
    file = tar.extractfile(info) if info.isreg() and not info.issparse() else None
    if file is None:
        raise KeyError(f"{name} is no plain file")
    return file


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    _add_stream(tar, name, len(data), iter([data]))


def _add_stream(tar: tarfile.TarFile, name: str, size: int, chunks: Iterator[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    tar.addfile(info, cast(IO[bytes], io.BufferedReader(_Stream(chunks))))


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file to read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or memoryview(next(self._chunks, b""))
        count = min(len(self._rest), len(buffer))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
