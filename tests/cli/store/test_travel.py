import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.cli.store import travel
from knee_siglip.cli.store.travel import CacheFiles, pack, unpack
from knee_siglip.core.errors import UserError
from knee_siglip.imaging.fit.transform import Transform, load_pixels
from knee_siglip.store.pixels import PixelStore, build_cache, open_pixels
from knee_siglip.tables.manifest import read_manifest

TRANSFORM = Transform(28, "pad", "local")
IMAGES = 9


def cache_files(folder: Path) -> CacheFiles:
    return CacheFiles(folder / "manifest.parquet", folder / "cache" / "index.parquet", folder / "cache" / "cache.json")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A project with originals; a row is there twice."""
    folder, rng = tmp_path / "home", np.random.default_rng(0)
    folder.mkdir()
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(folder / "store"))
    files = [folder / f"{number}.png" for number in range(IMAGES)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 30)).astype(np.uint8)).save(file)
    files.append(files[0])
    columns = {"img_path": [file.name for file in files], "image_file": [str(file) for file in files]}
    ids = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    rest = {"split": "train", "width": 30, "height": 40, "bits": 8, "text": "knee", "flags": ""}
    manifest = pd.DataFrame(columns | {"image_id": ids}).assign(**rest)
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    build_cache(manifest, TRANSFORM, cache_files(folder).index, cache_files(folder).facts)
    return folder


@pytest.fixture
def packed(home) -> Path:
    pack(home / "store" / "pixels", cache_files(home), home / "knees.tar")
    return home / "knees.tar"


@pytest.fixture
def expected(home) -> np.ndarray:
    return np.stack(
        [load_pixels(Path(file), TRANSFORM) for file in read_manifest(home / "manifest.parquet").image_file]
    )


@pytest.fixture
def away(tmp_path, monkeypatch, packed, expected) -> Path:
    """Another machine: an empty folder and store, and no originals."""
    for file in packed.parent.glob("*.png"):
        file.unlink()
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "away" / "store"))
    return tmp_path / "away"


def bring(packed: Path, away: Path, **options):
    return unpack(packed, away / "store" / "pixels", cache_files(away), **options)


def test_training_reads_what_was_unpacked_without_originals(packed, away, expected, home):
    done = bring(packed, away)
    assert (done.images, done.added, len(done.files)) == (IMAGES, IMAGES, 3)
    files = cache_files(away)
    pixels = open_pixels(read_manifest(files.manifest), files.facts)
    assert np.array_equal(pixels[np.arange(len(expected))], expected)
    assert files.index.read_bytes() == cache_files(home).index.read_bytes()


def test_unpacking_again_changes_nothing(packed, away):
    bring(packed, away)
    before = {file: file.read_bytes() for file in away.rglob("*") if file.is_file()}
    done = bring(packed, away)
    assert (done.added, done.files) == (0, [])
    assert {file: file.read_bytes() for file in away.rglob("*") if file.is_file()} == before


def test_unpacking_adds_to_what_is_there(packed, away, expected):
    bring(packed, away)
    folder = next((away / "store" / "pixels").iterdir())
    log = next(folder.glob("*.ids"))
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]))
    assert bring(packed, away).added == IMAGES - 4
    files = cache_files(away)
    assert np.array_equal(open_pixels(read_manifest(files.manifest), files.facts)[np.arange(IMAGES)], expected[:IMAGES])


def test_a_pixel_that_did_not_travel_names_the_original_it_needs(packed, away):
    bring(packed, away)
    manifest = read_manifest(cache_files(away).manifest)
    manifest.loc[3, ["image_id", "image_file"]] = ["f" * 64, "images/new.png"]
    with pytest.raises(
        UserError,
        match=r"images/new\.png: no such file; its folder does not exist either\n.*bring the originals or unpack",
    ):
        open_pixels(manifest, cache_files(away).facts)


def test_equal_content_gives_equal_bytes(home, packed):
    before = packed.read_bytes()
    pack(home / "store" / "pixels", cache_files(home), packed)
    assert packed.read_bytes() == before


def test_files_that_differ_are_not_overwritten_unasked(packed, away):
    manifest = cache_files(away).manifest
    manifest.parent.mkdir(parents=True)
    manifest.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"manifest\.parquet differ from those that were packed; --overwrite"):
        bring(packed, away)
    assert not (away / "store").exists()
    assert bring(packed, away, on_difference="leave").added == IMAGES
    assert manifest.read_bytes() == b"mine"
    assert not cache_files(away).facts.exists()
    assert len(bring(packed, away, on_difference="overwrite").files) == 3
    assert len(read_manifest(manifest)) == IMAGES + 1


def test_two_at_once_do_not_mix_their_files(packed, away, monkeypatch):
    real = travel._unpack_pixels

    def while_another_ends(*arguments):
        cache_files(away).manifest.parent.mkdir(parents=True)
        cache_files(away).manifest.write_bytes(b"of the other one")
        return real(*arguments)

    monkeypatch.setattr(travel, "_unpack_pixels", while_another_ends)
    with pytest.raises(UserError, match=r"manifest\.parquet differ from those that were packed"):
        bring(packed, away)
    assert not cache_files(away).facts.exists()


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_flipped_bit_on_the_way_is_noticed(packed, away, place):
    """In the pixels, the larger part of the tar."""
    with tarfile.open(packed) as tar:
        member = tar.getmember("pixels")
    data = bytearray(packed.read_bytes())
    data[member.offset_data + int(place * member.size)] ^= 4
    packed.write_bytes(data)
    with pytest.raises(UserError, match=r"knees\.tar is damaged.*copy it again"):
        bring(packed, away)
    assert not cache_files(away).manifest.exists()


def rewrite(packed: Path, change) -> None:
    """Replace members of the tar: change(name, data) gives TarInfo and data."""
    with tarfile.open(packed) as tar:
        members = [change(member.name, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(packed, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_truncated_file_and_a_foreign_one_are_one_sentence(packed, away):
    whole = packed.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:700], b"", b"no tar at all" * 100):
        packed.write_bytes(content)
        with pytest.raises(UserError, match="is damaged or was not written by `store pack`"):
            bring(packed, away)
    os.mkfifo(packed.with_name("pipe.tar"))
    for name in ("nothing.tar", "pipe.tar"):
        with pytest.raises(UserError, match=rf"{name} does not exist, or is no file"):
            bring(packed.with_name(name), away)


def test_hostile_members_are_not_followed(packed, away, tmp_path):
    with tarfile.open(packed, "a") as tar:
        for name in ("../escaped", str(tmp_path / "absolute"), "files/../../escaped"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    bring(packed, away)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped", "absolute")]

    def link(name: str, data: bytes):
        info = tarfile.TarInfo(name)
        if name == "files/manifest.parquet":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
            return info, b""
        return info, data

    rewrite(packed, link)
    with pytest.raises(UserError, match="no plain file"):
        bring(packed, away)


@pytest.mark.parametrize(("old", "new"), [(b" ", b"  "), (b" ", b"/../ "), (b"a", b"z")])
def test_ids_that_are_no_hashes_are_refused(packed, away, old, new):
    def change(name: str, data: bytes):
        return tarfile.TarInfo(name), data.replace(old, new) if name == "ids.txt" else data

    rewrite(packed, change)
    with pytest.raises(UserError, match="is damaged"):
        bring(packed, away)


def test_damaged_and_missing_pixels_are_not_packed(home, packed):
    root = home / "store" / "pixels"
    segment = next(root.glob("*/*.pixels"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)
    with pytest.raises(UserError, match=r"are damaged; run store verify --repair"):
        pack(root, cache_files(home), home / "again.tar")
    segment.unlink()
    with pytest.raises(UserError, match="lacks 9 images; run dvc repro preprocess"):
        pack(root, cache_files(home), home / "again.tar")
    assert not list(home.glob("again*"))


def test_packing_before_preprocess_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro preprocess"):
        pack(tmp_path / "pixels", cache_files(tmp_path), tmp_path / "out.tar")


def test_pixels_of_another_transform_stay(packed, away, tmp_path):
    other = PixelStore(away / "store" / "pixels", Transform(56, "pad", "local"))
    image = tmp_path / "one.png"
    Image.fromarray(np.eye(40, dtype=np.uint8) * 200).save(image)
    image_id = hashlib.sha256(image.read_bytes()).hexdigest()
    other.ensure([image_id], [image])
    bring(packed, away)
    other.refresh()
    assert other.missing([image_id]) == set()


@pytest.mark.parametrize("name", ["store.json", "ids.txt", "files/manifest.parquet", "files/cache.json"])
def test_a_flipped_bit_anywhere_in_a_member_is_noticed(packed, away, name):
    with tarfile.open(packed) as tar:
        member = tar.getmember(name)
    whole = packed.read_bytes()
    for at in np.linspace(0, member.size - 1, 12).astype(int).tolist():
        data = bytearray(whole)
        data[member.offset_data + at] ^= 4
        packed.write_bytes(data)
        with pytest.raises(UserError):
            bring(packed, away)
    assert not cache_files(away).manifest.exists()


def test_a_sparse_member_is_refused(packed, away):
    """It could unpack to any size."""

    with tarfile.open(packed) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    with tarfile.open(packed, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            if info.name == "pixels":
                info.pax_headers = {"GNU.sparse.map": f"0,{info.size}", "GNU.sparse.size": str(info.size)}
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(UserError, match="pixels is no plain file"):
        bring(packed, away)
