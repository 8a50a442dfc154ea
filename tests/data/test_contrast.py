"""Local contrast: exposure and slow gradients go, edges stay."""

import numpy as np
from PIL import Image

from knee_siglip.data.contrast import local_contrast
from knee_siglip.sample.findings import Labels
from knee_siglip.sample.radiograph import draw_knee


def _knee() -> np.ndarray:
    return draw_knee(np.random.default_rng(0), Labels("left", 2, "medial", "normal", False, None), 512)[0]


def _at(size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(_knee()).resize((size, size), Image.Resampling.LANCZOS))


def test_keeps_shape_and_gives_uint8_for_one_and_for_many() -> None:
    image = _at(224)
    one = local_contrast(image)
    many = local_contrast(np.stack([image, image]).astype(np.float32))
    assert (one.dtype, one.shape, many.shape) == (np.uint8, (224, 224), (2, 224, 224))
    assert np.array_equal(many[1], one)


def test_a_flat_picture_becomes_its_local_mean() -> None:
    for level in (0, 37, 255):
        assert (local_contrast(np.full((64, 64), level, dtype=np.uint8)) == 128).all()


def test_flat_regions_beside_structure_raise_no_warning() -> None:
    image = _at(224).copy()
    image[:60] = 0
    with np.errstate(all="raise"):
        changed = local_contrast(image)
    assert (changed[:5] == 128).all()


def test_exposure_does_not_matter() -> None:
    image = _at(224).astype(np.float32)
    dimmed = 0.5 * image + 40
    difference = local_contrast(image).astype(int) - local_contrast(dimmed).astype(int)
    assert np.percentile(np.abs(difference), 90) < 30


def test_looks_alike_at_224_and_448() -> None:
    small = local_contrast(_at(224)).astype(float)
    large = Image.fromarray(local_contrast(_at(448))).resize((224, 224), Image.Resampling.BOX)
    assert np.corrcoef(small.ravel(), np.asarray(large, dtype=float).ravel())[0, 1] > 0.9
