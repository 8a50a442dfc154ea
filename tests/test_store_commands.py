"""`knee-siglip store` on real files, through the command line's own parser."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from knee_siglip import paths
from knee_siglip.data.store import PixelStore, build_cache
from knee_siglip.data.transform import Transform
from knee_siglip.errors import UsageError, UserError
from knee_siglip.store_commands import app

TRANSFORM, OTHER = Transform(28, "pad", "local"), Transform(42, "pad", "local")
IMAGES = 6


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A DVC project after preprocess, in which another image size was used before; we are in its folder."""
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").touch()
    monkeypatch.delenv("KNEE_SIGLIP_STORE")
    monkeypatch.setenv("DVC_ROOT", str(folder))  # as in a stage
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(folder)
    rng = np.random.default_rng(0)
    files = [Path(f"{number}.png") for number in range(IMAGES)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 30)).astype(np.uint8)).save(file)
    ids = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    names = [str(file) for file in files]
    rest = {"split": "train", "width": 30, "height": 40, "bits": 8, "text": "knee", "flags": ""}
    manifest = pd.DataFrame({"img_path": names, "image_file": names, "image_id": ids}).assign(**rest)
    paths.MANIFEST.parent.mkdir(parents=True)
    manifest.to_parquet(paths.MANIFEST, index=False)
    build_cache(manifest, TRANSFORM)
    PixelStore(paths.store_root() / "pixels", OTHER).ensure(ids, files, workers=1)
    monkeypatch.delenv("DVC_ROOT")
    return folder


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def error_of(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, arguments).exception


def damage(project: Path) -> None:
    segment = next((project / ".store" / "pixels" / TRANSFORM.key).glob("*.pixels"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)


def test_the_project_is_found_from_anywhere_in_it(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project / "data")
    assert paths.find_store_root() == project / ".store"
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "elsewhere"))
    assert paths.find_store_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("KNEE_SIGLIP_STORE")
    monkeypatch.chdir(tmp_path)
    assert paths.find_store_root() == paths.store_root()
    assert tmp_path not in paths.find_store_root().parents


def test_show_tells_both_transforms_and_which_is_used(project, monkeypatch):
    monkeypatch.chdir(project / "data")
    lines = call("show").splitlines()
    (used,) = [line for line in lines if TRANSFORM.key in line]
    (kept,) = [line for line in lines if OTHER.key in line]
    assert "in use" in used
    assert re.search(rf"│ 42 .*│ fit pad, contrast local.*│ {IMAGES} .*│ kept", kept)
    assert re.fullmatch(rf"{project}/\.store/pixels: \d+\.\d MB in 2 transforms, \S+ [MG]B free on its disk", lines[-1])


def test_show_of_nothing(tmp_path):
    assert "0.0 MB in 0 transforms" in call("show")


def test_prune_says_what_would_go_and_does_it_only_with_yes(project):
    folder = project / ".store" / "pixels" / OTHER.key
    assert "nothing to prune" in call("prune")
    assert "nothing was removed: add --yes" in call("prune", "--all_but_current")
    assert list(folder.glob("*.pixels"))
    assert " freed" in call("prune", "--all_but_current", "--yes")
    assert not list(folder.glob("*.pixels"))
    assert "in 1 transforms" in call("show")
    assert "nothing to prune" in call("prune", "--older_than", "0", "--yes")


def test_verify_of_a_sound_store(project):
    output = call("verify")
    assert f"{TRANSFORM.key}: {IMAGES} images, 0 damaged" in output


def test_verify_fails_on_damage_until_it_is_repaired(project):
    damage(project)
    output = call("verify", code=1)
    assert f"{TRANSFORM.key}: {IMAGES} images, 1 damaged" in output
    assert "--repair" in output
    call("verify", "--repair")
    assert f"{TRANSFORM.key}: {IMAGES - 1} images, 0 damaged" in call("verify")


def test_verify_counts_what_was_cut_off(project):
    (pixels,) = (project / ".store" / "pixels" / TRANSFORM.key).glob("*.pixels")
    os.truncate(pixels, 2 * TRANSFORM.image_size**2 + 5)
    assert f"{TRANSFORM.key}: 2 images, 0 damaged, {IMAGES - 2} lost" in call("verify", code=1)
    call("verify", "--repair")
    assert f"{TRANSFORM.key}: 2 images, 0 damaged, 0 lost" in call("verify")


def test_pack_and_unpack_in_another_project(project, tmp_path, monkeypatch):
    assert f"knees.tar: {IMAGES} images" in call("pack", str(tmp_path / "knees.tar"))
    clone = tmp_path / "clone"
    (clone / ".dvc").mkdir(parents=True)
    (clone / ".dvc" / "config").touch()
    monkeypatch.chdir(clone)
    output = call("unpack", str(tmp_path / "knees.tar"))
    assert f"{IMAGES} images, {IMAGES} of them new in {clone}/.store/pixels" in output
    for path in (paths.MANIFEST, paths.CACHE_INDEX, paths.CACHE_FACTS):
        assert f"wrote {clone / path}" in output
        assert (clone / path).read_bytes() == (project / path).read_bytes()
    assert f"{TRANSFORM.key}: {IMAGES} images, 0 damaged" in call("verify")


def test_files_that_differ_need_a_decision(project, tmp_path):
    call("pack", str(tmp_path / "knees.tar"))
    paths.CACHE_FACTS.write_text("{}")
    assert isinstance(error_of("unpack", str(tmp_path / "knees.tar")), UserError)
    call("unpack", str(tmp_path / "knees.tar"), "--pixels_only")
    assert paths.CACHE_FACTS.read_text() == "{}"
    call("unpack", str(tmp_path / "knees.tar"), "--overwrite")
    assert TRANSFORM.key in paths.CACHE_FACTS.read_text()
    assert isinstance(error_of("unpack", "x.tar", "--overwrite", "--pixels_only"), UsageError)


def test_packing_without_a_cache_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "dvc repro preprocess" in str(error_of("pack", "out.tar"))
