"""`knee-siglip store` on real files, through the command line's own parser."""

import hashlib
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.core.errors import EXIT_FAILED, EXIT_USAGE
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.pixels import PixelStore, build_cache
from knee_siglip.tracking.runlog import tracking_folder
from knee_siglip.training.resume import StateSaver, open_run

TRANSFORM, OTHER = Transform(28, "pad", "local"), Transform(42, "pad", "local")
IMAGES = 6
TOWER = {"transform_key": TRANSFORM.key, "weights": "0123456789abcdef" * 4, "precision": "float32"}


def make_project(folder: Path) -> None:
    for name in (".dvc/config", paths.A_STAGE):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A DVC project after preprocess, in which another image size was used before; we are in its folder."""
    folder = tmp_path / "project"
    make_project(folder)
    monkeypatch.delenv("KNEE_SIGLIP_STORE")
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
    return folder


def compute(ids: list[str]) -> list[np.ndarray]:
    return [np.ones((len(ids), 16), dtype=np.float32)]


@pytest.fixture
def features(project) -> FeatureStore:
    """The project's images as a frozen tower sees them."""
    store = FeatureStore(project / ".store" / "features", TOWER, 16)
    store.ensure(pd.read_parquet(paths.MANIFEST)["image_id"].tolist(), compute)
    return store


@pytest.fixture
def store(knee_siglip) -> Callable[..., str]:
    """Runs `knee-siglip store ...`, expects this exit code, and returns what it says (with errors, on one line)."""

    def call(*arguments: str | Path, code: int = 0) -> str:
        ended, output, errors = knee_siglip("store", *arguments)
        assert ended == code, output + errors
        return output if code == 0 else output + " ".join(errors.split())

    return call


def rows_of(output: str) -> dict[str, dict[str, str]]:
    """The printed table: for each `kind key` what stands in its row; `made with` is the second line of the content."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    rows: dict[str, dict[str, str]] = {}
    for content, *cells in lines:
        if any(cells):  # else what a row is made with goes on
            row = rows[content] = dict(zip(("images", "size", "last used", "state"), cells, strict=True), facts="")
        else:
            row["facts"] = f"{row['facts']} {content}".strip()
    return rows


def damage(folder: Path) -> None:
    segment = next(file for file in folder.iterdir() if file.suffix in (".pixels", ".features"))
    data = bytearray(segment.read_bytes())
    data[100] ^= 1
    segment.write_bytes(data)


def test_the_project_is_found_from_anywhere_in_it(project, monkeypatch, tmp_path):
    monkeypatch.chdir(project / "data")
    assert paths.store_root() == project / ".store"
    assert tracking_folder() == project / ".store" / "tracking"  # of what is started by hand, too
    assert paths.tracking_root() == project
    assert paths.lasting_report(Path("report")) == Path("report")  # which DVC does not delete
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "elsewhere"))
    assert paths.store_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("KNEE_SIGLIP_STORE")
    monkeypatch.chdir(tmp_path)
    assert tmp_path not in paths.store_root().parents


def test_another_dvc_repository_gets_no_store(project, monkeypatch):
    (project / paths.A_STAGE).unlink()
    monkeypatch.chdir(project / "data")
    assert paths.project_root() == project
    assert project not in paths.store_root().parents
    assert paths.tracking_root() == project / "data"


def test_show_tells_both_transforms_and_which_is_used(project, store, monkeypatch):
    monkeypatch.chdir(project / "data")
    output = store("show")
    rows = rows_of(output)
    used, other = rows[f"pixels {TRANSFORM.key}"], rows[f"pixels {OTHER.key}"]
    assert (used["state"], other["state"]) == ("in use", "kept")
    assert other["images"] == str(IMAGES)
    assert "image_size 42, fit pad, contrast local" in other["facts"]
    total = output.splitlines()[-1]
    assert total.startswith(f"{project}/.store: ")
    assert " MB in 2 folders, " in total
    assert total.endswith("B free on its disk")


def test_show_of_nothing(tmp_path, store):
    assert "0.0 MB in 0 folders" in store("show")


def test_show_names_what_features_were_made_with(features, store):
    output = store("show")
    row = rows_of(output)[f"features {features.folder.name}"]
    assert (row["images"], row["state"]) == (str(IMAGES), "in use")
    assert row["facts"].startswith(f"transform_key {TRANSFORM.key}, weights 0123456789ab, precision float32")
    assert "in 3 folders" in output


def test_show_can_be_read_at_80_columns(features, store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    output = store("show")
    assert max(len(line) for line in output.splitlines() if "│" in line) <= 80
    assert "…" not in output
    rows = rows_of(output)
    assert rows.keys() == {f"pixels {key}" for key in (TRANSFORM.key, OTHER.key)} | {f"features {features.folder.name}"}
    for row in rows.values():
        assert (row["images"], row["size"].split()[1]) == (str(IMAGES), "MB")
        assert date.fromisoformat(row["last used"])
        assert row["state"] in ("in use", "kept")
    assert "fit pad, contrast local, inversion keep" in rows[f"pixels {OTHER.key}"]["facts"]
    made_with = rows[f"features {features.folder.name}"]["facts"]
    assert made_with.startswith(f"transform_key {TRANSFORM.key}, weights 0123456789ab,")


def test_prune_says_what_would_go_and_does_it_only_with_yes(project, store):
    folder = project / ".store" / "pixels" / OTHER.key
    assert "nothing to prune" in store("prune")
    assert "nothing was removed: add --yes" in store("prune", "--all_but_current")
    assert list(folder.glob("*.pixels"))
    assert " freed" in store("prune", "--all_but_current", "--yes")
    assert not list(folder.glob("*.pixels"))
    assert "in 1 folder, " in store("show")
    assert "nothing to prune" in store("prune", "--older_than", "0", "--yes")


def test_prune_takes_features_of_other_transforms(project, features, store):
    other = FeatureStore(project / ".store" / "features", TOWER | {"transform_key": OTHER.key}, 16)
    other.ensure(features.image_ids, compute)
    store("prune", "--older_than", "0", "--yes")
    assert not list(other.folder.glob("*.features"))
    assert list(features.folder.glob("*.features"))


def test_verify_of_a_sound_store(project, store):
    output = store("verify")
    assert f"{TRANSFORM.key}: {IMAGES} images, 0 damaged" in output


def test_verify_fails_on_damage_until_it_is_repaired(project, store):
    damage(project / ".store" / "pixels" / TRANSFORM.key)
    output = store("verify", code=EXIT_FAILED)
    assert f"{TRANSFORM.key}: {IMAGES} images, 1 damaged" in output
    assert "--repair" in output
    store("verify", "--repair")
    assert f"{TRANSFORM.key}: {IMAGES - 1} images, 0 damaged" in store("verify")


def test_verify_hashes_features_too(features, store):
    damage(features.folder)
    assert f"features {features.folder.name}: {IMAGES} images, 1 damaged" in store("verify", code=EXIT_FAILED)
    store("verify", "--repair")
    assert f"features {features.folder.name}: {IMAGES - 1} images, 0 damaged" in store("verify")


def test_verify_counts_what_was_cut_off(project, store):
    (pixels,) = (project / ".store" / "pixels" / TRANSFORM.key).glob("*.pixels")
    os.truncate(pixels, 2 * TRANSFORM.image_size**2 + 5)
    assert f"{TRANSFORM.key}: 2 images, 0 damaged, {IMAGES - 2} lost" in store("verify", code=EXIT_FAILED)
    store("verify", "--repair")
    assert f"{TRANSFORM.key}: 2 images, 0 damaged, 0 lost" in store("verify")


def test_pack_and_unpack_in_another_project(project, tmp_path, monkeypatch, store):
    assert f"knees.tar: {IMAGES} images" in store("pack", tmp_path / "knees.tar")
    clone = tmp_path / "clone"
    make_project(clone)
    monkeypatch.chdir(clone)
    output = store("unpack", tmp_path / "knees.tar")
    assert f"{IMAGES} images, {IMAGES} of them new in {clone}/.store/pixels" in output
    for path in (paths.MANIFEST, paths.CACHE_INDEX, paths.CACHE_FACTS):
        assert f"wrote {clone / path}" in output
        assert (clone / path).read_bytes() == (project / path).read_bytes()
    assert f"{TRANSFORM.key}: {IMAGES} images, 0 damaged" in store("verify")


def test_files_that_differ_need_a_decision(project, tmp_path, store):
    store("pack", tmp_path / "knees.tar")
    paths.CACHE_FACTS.write_text("{}")
    assert "differ" in store("unpack", tmp_path / "knees.tar", code=EXIT_FAILED)
    store("unpack", tmp_path / "knees.tar", "--pixels_only")
    assert paths.CACHE_FACTS.read_text() == "{}"
    store("unpack", tmp_path / "knees.tar", "--overwrite")
    assert TRANSFORM.key in paths.CACHE_FACTS.read_text()
    assert "exclude each other" in store("unpack", "x.tar", "--overwrite", "--pixels_only", code=EXIT_USAGE)


def test_packing_without_a_cache_says_what_to_run(tmp_path, monkeypatch, store):
    monkeypatch.chdir(tmp_path)
    assert "dvc repro preprocess" in store("pack", "out.tar", code=EXIT_FAILED)


@pytest.fixture
def run(project) -> StateSaver:
    """A training that was killed at step 20, three days ago."""
    with open_run(project / ".store" / paths.RUNS, "0123456789abcdef", minutes=5) as keeper:
        keeper.best_model.write_bytes(bytes(4096))
        keeper.save({"step": 20}, 20)
    for file in keeper.folder.iterdir():
        os.utime(file, (time.time() - 3 * 86400,) * 2)
    return keeper


def test_unfinished_trainings_are_shown_and_pruned_by_age_only(run, store):
    assert "unfinished training 0123456789ab: saved at step 20" in store("show")
    assert "nothing to prune" in store("prune", "--yes", "--older_than", "4")
    assert "0123456789ab" not in store("prune", "--yes", "--all_but_current")
    assert "0123456789ab" in store("prune", "--older_than", "2")
    assert next(run.undamaged()) == {"step": 20}
    store("prune", "--older_than", "2", "--yes")
    assert not run.folder.exists()


def test_pages_of_failed_runs_are_shown_and_pruned_by_age_only(project, store):
    page = project / ".store" / paths.FAILED / "lofty-knee/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("what is wrong")
    os.utime(page, (time.time() - 3 * 86400,) * 2)
    assert "validation page of the failed run lofty-knee" in store("show")
    assert "lofty-knee" not in store("prune", "--yes", "--all_but_current")
    assert "nothing to prune" in store("prune", "--yes", "--older_than", "4")
    assert "lofty-knee" in store("prune", "--older_than", "2")
    assert page.exists()
    store("prune", "--older_than", "2", "--yes")
    assert not page.parent.exists()


def test_a_training_that_runs_is_not_pruned(run, store):
    with open_run(run.folder.parent, run.folder.name, minutes=5):
        for file in run.folder.iterdir():
            os.utime(file, (0, 0))
        store("prune", "--older_than", "2", "--yes", code=EXIT_FAILED)
    assert next(run.undamaged()) == {"step": 20}
