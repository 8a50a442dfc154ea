"""Every file is decoded once: what is kept of it, and when it is decoded again after all."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.validation.images import facts as facts_cache
from knee_siglip.validation.images import inspection
from knee_siglip.validation.images.facts import load_facts, save_facts
from knee_siglip.validation.images.inspection import Failure, ImageFacts, inspect_images


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (20, 30)).astype(np.uint8)).save(name)
    return names


def facts_files() -> list[Path]:
    return sorted((paths.store_root() / "facts").glob("*/*.parquet"))


def mark_saved_facts() -> None:
    """Change the saved facts as no decoding would: a mean of -1 then shows that they were taken."""
    (file,) = facts_files()
    pd.read_parquet(file).assign(mean=-1.0).to_parquet(file, index=False)


def test_facts_are_those_of_the_file_and_of_its_pixels(images):
    facts = inspect_images(images)[images[0]]
    grey = np.asarray(Image.open(images[0]))
    assert isinstance(facts, ImageFacts)
    assert facts.image_id == hashlib.sha256(Path(images[0]).read_bytes()).hexdigest()
    assert (facts.width, facts.height, facts.bits, facts.kind) == (30, 20, 8, "PNG L")
    assert facts.file_bytes == Path(images[0]).stat().st_size
    assert (facts.mean, facts.std) == pytest.approx((grey.mean(), grey.std()))


def test_equal_pixels_in_different_files_have_one_pixel_id(images, tmp_path):
    again = tmp_path / "again.tiff"
    Image.open(images[0]).save(again)
    turned = tmp_path / "turned.png"
    Image.fromarray(np.asarray(Image.open(images[0])).reshape(30, 20)).save(turned)
    facts = inspect_images([images[0], str(again), str(turned)])
    assert facts[str(again)].pixel_id == facts[images[0]].pixel_id
    assert facts[str(again)].image_id != facts[images[0]].image_id
    assert facts[str(turned)].pixel_id != facts[images[0]].pixel_id


def test_unreadable_files_are_failures_that_name_them(images, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(images[0]).read_bytes()[:100])
    results = inspect_images([str(broken), str(tmp_path / "nothing.png")])
    assert [results[name].check for name in sorted(results)] == ["unreadable_image", "missing_image"]
    assert all(isinstance(result, Failure) and name in result.message for name, result in results.items())


def test_known_images_are_not_decoded_again_whatever_their_name(images):
    first = inspect_images(images)
    mark_saved_facts()
    moved = Path(images[1]).rename(Path(images[1]).with_name("moved.png"))
    again = inspect_images([images[0], str(moved), *images[2:]])
    expected = {**{name: first[name] for name in (images[0], *images[2:])}, str(moved): first[images[1]]}
    assert again == {name: replace(facts, mean=-1.0) for name, facts in expected.items()}


def test_a_changed_file_is_decoded_again(images):
    before = inspect_images(images)
    Image.fromarray(np.zeros((5, 6), dtype=np.uint8)).save(images[2])
    after = inspect_images(images)
    assert (after[images[2]].width, after[images[2]].height) == (6, 5)
    assert all(after[name] == before[name] for name in images if name != images[2])


def test_failures_are_looked_at_again(images, tmp_path):
    late = tmp_path / "late.png"
    assert isinstance(inspect_images([str(late)])[str(late)], Failure)
    late.write_bytes(Path(images[0]).read_bytes())
    assert isinstance(inspect_images([str(late)])[str(late)], ImageFacts)


def test_other_code_shares_no_facts(images):
    first = inspect_images(images)
    mark_saved_facts()
    folder = facts_files()[0].parent
    folder.rename(folder.with_name("0123456789abcdef"))
    assert inspect_images(images) == first


def test_key_follows_code(monkeypatch, tmp_path):
    changed = tmp_path / "images.py"
    changed.write_bytes(facts_cache.SOURCES[0].read_bytes() + b"\n")
    before = fresh_key()
    monkeypatch.setattr(facts_cache, "SOURCES", (changed, *facts_cache.SOURCES[1:]))
    assert fresh_key() != before


def test_key_follows_libraries(monkeypatch):
    before = fresh_key()
    monkeypatch.setattr(facts_cache, "version", lambda library: "0")
    assert fresh_key() != before


def fresh_key() -> str:
    """As a new process would make it."""
    facts_cache.facts_key.cache_clear()
    try:
        return facts_cache.facts_key()
    finally:
        facts_cache.facts_key.cache_clear()


def test_damaged_facts_are_made_again(images):
    first = inspect_images(images)
    (file,) = facts_files()
    file.write_bytes(file.read_bytes()[:50])
    assert inspect_images(images) == first


def test_facts_of_all_runs_end_in_one_file(images):
    inspect_images(images[:2])
    inspect_images(images)
    (file,) = facts_files()
    assert len(pd.read_parquet(file)) == 4


def test_facts_that_two_processes_save_at_once_are_both_kept(tmp_path, monkeypatch):
    """Another process saves between this one's look at the folder and its writing."""
    save_facts(tmp_path, [{"image_id": "first"}])
    others = iter([{"image_id": "other"}])
    read = facts_cache._read

    def read_while_another_saves(file, columns=None):
        if other := next(others, None):
            save_facts(tmp_path, [other])
        return read(file, columns)

    monkeypatch.setattr(facts_cache, "_read", read_while_another_saves)
    save_facts(tmp_path, [{"image_id": "mine"}])
    assert set(load_facts(tmp_path).index) == {"first", "mine", "other"}


def test_a_store_that_cannot_be_written_costs_a_warning(images, monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(blocked))
    assert all(isinstance(result, ImageFacts) for result in inspect_images(images).values())
    assert "will be read again" in caplog.text


def test_an_interrupted_run_keeps_what_it_has_read(images, monkeypatch):
    def interrupted(work, _items, _limit, _description):
        yield work(images[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "work_in_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspect_images(images)
    assert len(load_facts(facts_files()[0].parent)) == 3


def test_facts_are_saved_on_the_way_so_that_a_killed_run_keeps_them(images, monkeypatch):
    saved = []

    def one_by_one(work, _items, _limit, _description):
        for name in images:
            yield work([name])
            saved.append(len(load_facts(facts_files()[0].parent)))

    monkeypatch.setattr(inspection, "SAVED_EVERY", -1.0)
    monkeypatch.setattr(inspection, "work_in_chunks", one_by_one)
    inspect_images(images)
    assert saved == [1, 2, 3, 4]


def test_facts_lost_between_two_steps_are_made_again(images, monkeypatch):
    first = inspect_images(images)
    monkeypatch.setattr(inspection, "load_facts", lambda folder: pd.DataFrame())
    assert inspect_images(images) == first


def test_saving_a_little_does_not_write_all_facts_again(images, tmp_path):
    facts = [vars(image) for image in inspect_images(images).values()]
    many = [facts[0] | {"image_id": f"{number:064x}"} for number in range(100)]
    save_facts(tmp_path / "facts", many)
    (large,) = (tmp_path / "facts").iterdir()
    for number in range(4):
        save_facts(tmp_path / "facts", [facts[0] | {"image_id": f"{1000 + number:064x}"}])
    assert large.exists()
    assert len(list((tmp_path / "facts").iterdir())) <= 3
    assert len(load_facts(tmp_path / "facts")) == 104
