import numpy as np
import pytest

from knee_siglip.imaging.decode.read import ImageError
from knee_siglip.imaging.fit.contrast import local_contrast
from knee_siglip.imaging.fit.transform import VERSION, Transform

RNG = np.random.default_rng(0)


def knee(height: int = 300, width: int = 200) -> np.ndarray:
    """A bright column on a gradient."""
    grey = np.tile(np.linspace(20, 60, width), (height, 1))
    grey[:, width // 3 : 2 * width // 3] += 120
    return grey.astype(np.uint8)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (50, 50), (1, 400), (400, 1), (1, 1), (223, 225)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_every_shape_becomes_the_square(shape, fit):
    pixels = Transform(56, fit, "local")(RNG.integers(0, 256, shape).astype(np.uint8))
    assert pixels.shape == (56, 56)
    assert pixels.dtype == np.uint8


def test_pad_keeps_the_aspect_ratio_and_centres():
    grey = np.zeros((200, 100), dtype=np.uint8)
    grey[20:180, 10:90] = 200
    bright = Transform(100, "pad", "none")(grey) > 100
    columns, rows = np.flatnonzero(bright.any(axis=0)), np.flatnonzero(bright.any(axis=1))
    assert (len(columns), len(rows)) == (40, 80)
    assert (columns.mean(), rows.mean()) == (49.5, 49.5)


@pytest.mark.parametrize("border", [0, 235])
def test_padding_takes_the_grey_of_the_border(border):
    grey = np.full((200, 100), border, dtype=np.uint8)
    grey[50:150, 25:75] = 128
    pixels = Transform(64, "pad", "none")(grey)
    assert (pixels[:, :16] == border).all()
    assert (pixels[:, -16:] == border).all()


def test_crop_takes_the_middle_of_the_long_side():
    grey = np.zeros((300, 100), dtype=np.uint8)
    grey[90:210] = 180
    assert (Transform(50, "crop", "none")(grey) == 180).all()


def test_an_image_of_the_right_size_is_left_alone():
    grey = RNG.integers(0, 256, (64, 64)).astype(np.uint8)
    for fit in ("pad", "crop"):
        assert np.array_equal(Transform(64, fit, "none")(grey), grey)


def test_shrinking_does_not_alias():
    stripes = np.zeros((512, 512), dtype=np.uint8)
    stripes[:, ::2] = 200
    pixels = Transform(100, "pad", "none")(stripes).astype(int)
    assert np.abs(pixels[5:-5, 5:-5] - 100).max() < 12


@pytest.mark.parametrize(("probability", "inverted"), [(0.4, False), (0.6, True)])
def test_what_is_probably_inverted_is_corrected_on_request(monkeypatch, probability, inverted):
    monkeypatch.setattr("knee_siglip.imaging.fit.transform.inversion_probability", lambda grey: probability)
    expected = Transform(64, "pad", "local")(255 - knee() if inverted else knee())
    assert np.array_equal(Transform(64, "pad", "local", "correct")(knee()), expected)
    assert np.array_equal(Transform(64, "pad", "local", "keep")(knee()), Transform(64, "pad", "local")(knee()))


def test_local_contrast_comes_last():
    plain, local = Transform(64, "pad", "none")(knee()), Transform(64, "pad", "local")(knee())
    assert np.array_equal(local, local_contrast(plain))


def test_key_changes_with_every_parameter_and_only_then():
    variants = [Transform(s, f, c) for s in (224, 448) for f in ("pad", "crop") for c in ("local", "none")]
    variants.append(Transform(224, "pad", "local", "correct"))
    assert len({transform.key for transform in variants}) == 9
    assert Transform(224, "pad", "local").key == Transform(224, "pad", "local").key


def test_dict_round_trip():
    transform = Transform(448, "crop", "none", "correct")
    assert Transform.from_dict(transform.to_dict()) == transform


def test_checkpoint_of_version_2_is_read_and_its_pixels_are_not():
    old = {**Transform(224, "pad", "local").to_dict(), "version": 2}
    assert Transform.from_dict(old) == Transform(224, "pad", "local")
    assert Transform.from_dict(old).to_dict()["version"] == VERSION


def test_pixels_of_another_version_are_refused():
    with pytest.raises(ImageError, match="run preprocess again"):
        Transform.from_dict({**Transform(224, "pad", "local").to_dict(), "version": VERSION + 1})


COLUMNS = [2, 17, 20, 28, 35, 39, 52]
GOLDEN = {
    ("pad", "local"): [128, 104, 54, 137, 82, 123, 128],
    ("crop", "none"): [21, 23, 152, 160, 164, 49, 57],
}


@pytest.mark.parametrize(("fit", "contrast"), GOLDEN)
def test_pixels_are_those_of_this_version(fit, contrast):
    """Fails when the same file gives other pixels: then raise images.VERSION, or stores and checkpoints go stale."""
    profile = Transform(56, fit, contrast)(knee()).mean(axis=0)[COLUMNS]
    assert profile == pytest.approx(GOLDEN[fit, contrast], abs=1)


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (90, 90), (411, 97)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_boxes_go_where_their_pixels_go(shape, fit):
    """A bright rectangle lies in the square where its box does; what is cropped away is cut off."""
    height, width = shape
    box = np.array([0.1, 0.3, 0.7, 0.8])
    grey = np.zeros(shape, dtype=np.uint8)
    grey[round(0.3 * height) : round(0.8 * height), round(0.1 * width) : round(0.7 * width)] = 200
    transform = Transform(112, fit, "none")
    bright = transform(grey) > 100
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    (placed,) = transform.place_boxes(box[None], height, width)
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(placed.clip(0, 112) - found).max() <= 1


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_no_boxes_are_no_boxes(fit):
    assert Transform(56, fit, "none").place_boxes(np.zeros((0, 4)), 30, 20).shape == (0, 4)
