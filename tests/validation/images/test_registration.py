import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from knee_siglip.validation.images.registration import smooth


@pytest.mark.parametrize("sigma", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("shape", [(32, 32), (3, 128, 128)])
def test_smoothing_is_scipys_gaussian_filter(shape: tuple[int, ...], sigma: float) -> None:
    squares = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    expected = gaussian_filter(squares.astype(np.float64), sigma, axes=(-2, -1), mode="nearest")
    smoothed = smooth(squares, sigma)
    assert smoothed.dtype == np.float32
    assert smoothed == pytest.approx(expected, abs=0.001)
