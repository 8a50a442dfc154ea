import hashlib
import io
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from knee_siglip.validation.images import candidates
from knee_siglip.validation.images.candidates import LEAST_COSINE, RELATIONS, apart, nearest, turned, unit
from knee_siglip.validation.images.near_duplicates import (
    FINE_SIDE,
    _square,
    fingerprint,
    near_duplicate_pairs,
    similarity,
)


def picture(seed, size=160):
    """Smooth blobs with some grain: as different from the next seed as two scenes are."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=(size, size)), sigma) * sigma for sigma in (8, 2))
    values = coarse * 60 + fine * 20
    return np.clip(128 + values, 0, 255).astype(np.uint8)


def recompressed(grey):
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


def resized(grey):
    return np.asarray(Image.fromarray(grey).resize((100, 96)))


CHANGES = {
    "recompressed": recompressed,
    "resized": resized,
    "cropped": lambda grey: grey[8:, 4:-4],
    "mirrored": lambda grey: grey[:, ::-1],
    "turned": lambda grey: np.rot90(grey),
    "gamma": lambda grey: ((grey / 255) ** 1.6 * 255).astype(np.uint8),
    "windowed": lambda grey: np.clip((grey.astype(float) - 50) * 1.6, 0, 255).astype(np.uint8),
    "inverted": lambda grey: 255 - grey,
    "several": lambda grey: recompressed(resized(255 - grey[6:, ::-1])),
}


@pytest.fixture
def make_images(tmp_path):
    """A table as near_duplicates.py takes it, from (split, grey) pairs; rows are numbered from 2."""

    def make(*images):
        rows = []
        for number, (split, grey) in enumerate(images):
            file = tmp_path / f"{number}.png"
            Image.fromarray(np.ascontiguousarray(grey)).save(file)
            pixels = hashlib.sha256(repr(grey.shape).encode() + grey.tobytes()).hexdigest()
            rows.append((split, str(file), pixels, fingerprint(grey)))
        table = pd.DataFrame(rows, columns=["split", "image_file", "pixel_id", "fingerprint"])
        return table.set_index(pd.RangeIndex(2, len(table) + 2))

    return make


def rows_of(pairs):
    return [(pair.row_a, pair.row_b) for pair in pairs]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_in_another_split_is_found(make_images, change):
    images = [("train", picture(seed)) for seed in range(6)]
    pairs = near_duplicate_pairs(make_images(*images, ("test", picture(50)), ("test", CHANGES[change](picture(3)))))
    assert rows_of(pairs) == [(5, 9)]


def test_a_copy_is_found_among_many(make_images):
    """More images than are compared one by one: the projection has to bring them together."""
    images = [("train", picture(seed, 64)) for seed in range(90)]
    copies = [("test", picture(seed, 64)[2:, :-2]) for seed in (7, 40)]
    assert rows_of(near_duplicate_pairs(make_images(*images, *copies))) == [(9, 92), (42, 93)]


def test_how_the_copy_was_made_is_told(make_images):
    pairs = near_duplicate_pairs(make_images(("train", picture(1)), ("val", 255 - picture(1)[:, ::-1])))
    assert [pair.relation for pair in pairs] == ["mirrored and inverted"]
    assert pairs[0].similarity > 0.9


def test_copies_within_a_split_are_no_leak(make_images):
    assert (
        near_duplicate_pairs(make_images(("test", picture(1)), ("test", 255 - picture(1)), ("train", picture(2)))) == []
    )


def test_different_images_are_not_alike(make_images):
    splits = ["train", "val", "test"]
    assert near_duplicate_pairs(make_images(*[(splits[seed % 3], picture(seed)) for seed in range(12)])) == []


def test_equal_pixels_are_left_to_another_check(make_images):
    assert near_duplicate_pairs(make_images(("train", picture(1)), ("test", picture(1)))) == []


def test_every_one_of_many_copies_is_found(make_images):
    """More copies of one test image than are looked at first."""
    copies = [("train", picture(1)[cut:]) for cut in range(1, 9)]
    others = [("train", picture(seed)) for seed in range(70, 75)]
    assert len(near_duplicate_pairs(make_images(("test", picture(1)), *copies, *others))) == 8


@pytest.mark.parametrize("grey", [np.full((40, 40), 7, np.uint8), np.ones((1, 9), np.uint8)])
def test_images_without_content_are_left_out(make_images, grey):
    assert fingerprint(grey) == b""
    assert near_duplicate_pairs(make_images(("train", grey), ("test", 255 - grey))) == []


def test_an_image_that_vanished_is_no_pair(make_images):
    table = make_images(("train", picture(1)), ("test", 255 - picture(1)))
    table["image_file"] = "gone.png"
    assert near_duplicate_pairs(table) == []


@pytest.mark.parametrize("whole_first", [True, False])
def test_what_was_cropped_off_counts_on_neither_side(whole_first):
    """An edge that only one of the two shows must not lower the similarity, whichever of them is cropped."""
    whole = picture(3)
    images = [whole, whole[8:-8, 8:-8]] if whole_first else [whole[8:-8, 8:-8], whole]
    squares = [_square(grey, FINE_SIDE)[None] for grey in images]
    scale, unmoved = (1 / 0.9 if whole_first else 0.9), np.array([[1, 0, 1, 0]], dtype=np.float32)
    start = np.array([[scale, 0, scale, 0]], dtype=np.float32)
    assert similarity(*squares, np.stack([start, unmoved]))[0] > 0.95


def test_candidates_of_many_images_take_bounded_memory():
    """10,000 fingerprints: products of all 1,000 queries at once would be 40 MB, several times over."""
    prints = np.random.default_rng(0).integers(-60, 60, (10_000, 32, 32)).astype(np.int8)
    splits = np.where(np.arange(10_000) < 1000, 4, 1)
    prints[5000] = -prints[10][:, ::-1]
    tracemalloc.start()
    near = nearest(prints, np.arange(1000), splits, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (at,) = np.flatnonzero((near.query == 10) & (near.image == 5000))
    assert (RELATIONS[near.orientation[at]], near.sign[at]) == ("mirrored", -1)
    assert peak < 170e6


def test_the_bound_leaves_out_no_candidate(monkeypatch):
    """Against all products at once, where the bound prunes much, little, or after several tiles and blocks."""
    prints = structured_prints(1500)
    splits = np.random.default_rng(1).choice([1, 1, 2, 4, 5], 1500)
    queries = np.flatnonzero(splits > 1)[:150]
    monkeypatch.setattr(candidates, "TILE", 400)
    for count in (1, 3, 40, 1499):
        near = nearest(prints, queries, splits, count)
        found = set(
            zip(near.query.tolist(), near.image.tolist(), near.orientation.tolist(), near.sign.tolist(), strict=True)
        )
        assert found == all_products(prints, queries, splits, count)


def structured_prints(count):
    """int8 (count, 32, 32) that share much, as knees do; each tenth one is alike its predecessor or is it mirrored."""
    rng = np.random.default_rng(0)
    shared = gaussian_filter(rng.normal(size=(20, 32, 32)), (0, 2, 2)) * 8
    prints = np.tensordot(rng.normal(size=(count, 20)), shared, 1) + rng.normal(size=(count, 32, 32))
    prints[10::20] = prints[9:-1:20] + rng.normal(size=prints[10::20].shape) / 3
    prints[20::20] = -prints[19:-1:20, :, ::-1]
    return np.clip(np.rint(prints * 20), -127, 127).astype(np.int8)


def all_products(prints, queries, splits, count):
    """(query, image, orientation, sign) of the `count` nearest, from every cosine."""
    projection = candidates.fit_projection(prints)
    flat = [
        unit(unit(turned(prints, number).reshape(len(prints), -1).astype(np.float32)) @ projection)
        for number in range(8)
    ]
    cosines = np.stack([vectors[queries] @ flat[0].T for vectors in flat])
    best = np.abs(cosines).max(axis=0)
    best[~apart(splits[queries][:, None], splits[None])] = 0
    best[np.arange(len(queries)), queries] = 0
    expected = set()
    for query in range(len(queries)):
        for image in np.argsort(-best[query])[:count].tolist():
            if best[query, image] >= LEAST_COSINE:
                turn = int(np.abs(cosines[:, query, image]).argmax())
                expected.add((query, image, turn, float(np.sign(cosines[turn, query, image]))))
    return expected
