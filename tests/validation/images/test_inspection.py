import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core import paths
from knee_siglip.validation.images import facts as facts_cache
from knee_siglip.validation.images import inspection
from knee_siglip.validation.images.inspection import Failure, ImageFacts, inspect_images


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched must be patched where the work is done."""
    monkeypatch.setattr(inspection, "available_cores", lambda: 1)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (20, 30)).astype(np.uint8)).save(name)
    return names


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(inspection, "decode", fail)


def facts_files() -> list[Path]:
    return sorted((paths.store_root() / "facts").glob("*/*.parquet"))


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


def test_known_images_are_not_decoded_again_whatever_their_name(images, monkeypatch):
    first = inspect_images(images)
    moved = Path(images[1]).rename(Path(images[1]).with_name("moved.png"))
    forbid_decoding(monkeypatch)
    again = inspect_images([images[0], str(moved), *images[2:]])
    assert again == {**{name: first[name] for name in (images[0], *images[2:])}, str(moved): first[images[1]]}


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


def test_other_code_shares_no_facts(images, monkeypatch):
    inspect_images(images)
    monkeypatch.setattr(inspection, "facts_key", lambda: "other")
    forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded"):
        inspect_images(images)


def test_key_follows_code_and_libraries(monkeypatch, tmp_path):
    key = facts_cache.facts_key.__wrapped__
    before = key()
    changed = tmp_path / "images.py"
    changed.write_bytes(facts_cache.SOURCES[0].read_bytes() + b"\n")
    monkeypatch.setattr(facts_cache, "version", lambda library: "0")
    other_library = key()
    monkeypatch.undo()
    monkeypatch.setattr(facts_cache, "SOURCES", (changed, *facts_cache.SOURCES[1:]))
    assert len({before, other_library, key()}) == 3


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


def test_facts_that_two_processes_save_at_once_are_both_kept(images, monkeypatch):
    folder = paths.store_root() / "facts" / "key"
    read = facts_cache._read

    def read_while_another_saves(file, columns=None):
        monkeypatch.setattr(facts_cache, "_read", read)
        facts_cache.save_facts(folder, [{"image_id": "other"}])
        return read(file, columns)

    facts_cache.save_facts(folder, [{"image_id": "first"}])
    monkeypatch.setattr(facts_cache, "_read", read_while_another_saves)
    facts_cache.save_facts(folder, [{"image_id": "mine"}])
    assert set(facts_cache.load_facts(folder).index) == {"first", "mine", "other"}


def test_a_store_that_cannot_be_written_costs_a_warning(images, monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(blocked))
    assert all(isinstance(result, ImageFacts) for result in inspect_images(images).values())
    assert "will be read again" in caplog.text


def test_a_killed_run_keeps_what_it_saved_on_the_way(images, monkeypatch):
    monkeypatch.setattr(inspection, "SAVED_EVERY", -1.0)
    monkeypatch.setattr(inspection, "IMAGES_PER_CHUNK", 1)

    def die_at_last(folder: Path, names: list[str]) -> list[tuple[str, ImageFacts]]:
        if names == [images[3]]:
            raise KeyboardInterrupt
        return original(folder, names)

    original = inspection._inspect
    monkeypatch.setattr(inspection, "_inspect", die_at_last)
    with pytest.raises(KeyboardInterrupt):
        inspect_images(images)
    assert len(facts_cache.load_facts(facts_files()[0].parent)) == 3


def test_facts_lost_between_two_steps_are_made_again(images, monkeypatch):
    first = inspect_images(images)
    monkeypatch.setattr(inspection, "load_facts", lambda folder: pd.DataFrame())
    assert inspect_images(images) == first
