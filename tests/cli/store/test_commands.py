"""`knee-siglip store` on real files, through the command line's own parser."""

import hashlib
import os
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from knee_siglip.cli.store.commands import app
from knee_siglip.core import paths
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.pixels import PixelStore, build_cache
from knee_siglip.training.resume import StateSaver, open_run

TRANSFORM, OTHER = Transform(28, "pad", "local"), Transform(42, "pad", "local")
IMAGES = 6
TOWER = {"transform_key": TRANSFORM.key, "weights": "0123456789abcdef" * 4, "precision": "float32"}


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


def compute(ids: list[str]) -> list[np.ndarray]:
    return [np.ones((len(ids), 16), dtype=np.float32)]


@pytest.fixture
def features(project) -> FeatureStore:
    """The project's images as a frozen tower sees them."""
    store = FeatureStore(project / ".store" / "features", TOWER, 16)
    store.ensure(pd.read_parquet(paths.MANIFEST)["image_id"].tolist(), compute)
    return store


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def error_of(*arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, arguments).exception


def damage(folder: Path) -> None:
    segment = next(file for file in folder.iterdir() if file.suffix in (".pixels", ".features"))
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
    assert re.search(rf"│ pixels {OTHER.key} .*│ {IMAGES} .*│ kept", kept)
    assert "image_size 42, fit pad, contrast local" in "\n".join(lines)
    assert re.fullmatch(rf"{project}/\.store: \d+\.\d MB in 2 folders, \S+ [MG]B free on its disk", lines[-1])


def test_show_of_nothing(tmp_path):
    assert "0.0 MB in 0 folders" in call("show")


def test_show_names_what_features_were_made_with(features):
    output = call("show")
    assert re.search(rf"│ features {features.folder.name} .*│ {IMAGES} .*│ in use", output)
    assert f"transform_key {TRANSFORM.key}, weights 0123456789ab, precision float32" in output
    assert "in 3 folders" in output


def test_show_can_be_read_at_80_columns(features, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for line in call("show").splitlines() if line.startswith("│")]
    assert max(map(len, lines)) <= 80
    for key, kind in {TRANSFORM.key: "pixels", OTHER.key: "pixels", features.folder.name: "features"}.items():
        (line,) = [line for line in lines if f"{kind} {key}" in line]
        assert re.search(rf"│ {IMAGES} +│ \d+\.\d MB +│ \d{{4}}-\d\d-\d\d │ (in use|kept)", line)
    words = " ".join(line.split("│")[1].strip() for line in lines)
    for facts in ("fit pad, contrast local, inversion keep", f"transform_key {TRANSFORM.key}, weights 0123456789ab,"):
        assert facts in words
    assert "…" not in words


def test_prune_says_what_would_go_and_does_it_only_with_yes(project):
    folder = project / ".store" / "pixels" / OTHER.key
    assert "nothing to prune" in call("prune")
    assert "nothing was removed: add --yes" in call("prune", "--all_but_current")
    assert list(folder.glob("*.pixels"))
    assert " freed" in call("prune", "--all_but_current", "--yes")
    assert not list(folder.glob("*.pixels"))
    assert "in 1 folders" in call("show")
    assert "nothing to prune" in call("prune", "--older_than", "0", "--yes")


def test_prune_takes_features_of_other_transforms(project, features):
    other = FeatureStore(project / ".store" / "features", TOWER | {"transform_key": OTHER.key}, 16)
    other.ensure(features.image_ids, compute)
    call("prune", "--older_than", "0", "--yes")
    assert not list(other.folder.glob("*.features"))
    assert list(features.folder.glob("*.features"))


def test_verify_of_a_sound_store(project):
    output = call("verify")
    assert f"{TRANSFORM.key}: {IMAGES} images, 0 damaged" in output


def test_verify_fails_on_damage_until_it_is_repaired(project):
    damage(project / ".store" / "pixels" / TRANSFORM.key)
    output = call("verify", code=1)
    assert f"{TRANSFORM.key}: {IMAGES} images, 1 damaged" in output
    assert "--repair" in output
    call("verify", "--repair")
    assert f"{TRANSFORM.key}: {IMAGES - 1} images, 0 damaged" in call("verify")


def test_verify_hashes_features_too(features):
    damage(features.folder)
    assert f"features {features.folder.name}: {IMAGES} images, 1 damaged" in call("verify", code=1)
    call("verify", "--repair")
    assert f"features {features.folder.name}: {IMAGES - 1} images, 0 damaged" in call("verify")


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


@pytest.fixture
def run(project) -> StateSaver:
    """A training that was killed at step 20, three days ago."""
    with open_run(project / ".store" / paths.RUNS, "0123456789abcdef", minutes=5) as keeper:
        keeper.best_model.write_bytes(bytes(4096))
        keeper.save({"step": 20}, 20)
    for file in keeper.folder.iterdir():
        os.utime(file, (time.time() - 3 * 86400,) * 2)
    return keeper


def test_unfinished_trainings_are_shown_and_pruned_by_age_only(run):
    assert "unfinished training 0123456789ab: saved at step 20" in call("show")
    assert "nothing to prune" in call("prune", "--yes", "--older_than", "4")
    assert "0123456789ab" not in call("prune", "--yes", "--all_but_current")
    assert "0123456789ab" in call("prune", "--older_than", "2")
    assert run.load() == {"step": 20}
    call("prune", "--older_than", "2", "--yes")
    assert not run.folder.exists()


def test_a_training_that_runs_is_not_pruned(run):
    with open_run(run.folder.parent, run.folder.name, minutes=5):
        for file in run.folder.iterdir():
            os.utime(file, (0, 0))
        assert isinstance(error_of("prune", "--older_than", "2", "--yes"), UserError)
    assert run.load() == {"step": 20}
