"""How well a map of an image points at the boxes of a finding, as on MS-CXR.

Source: Boecking et al. 2022 (arXiv:2204.09817), section 4.2: contrast-to-noise ratio, and the IoU averaged over
thresholds. There the map is a cosine of fixed scale; maps of other methods have none, so that each is scaled by its
largest value before it is cut. Boxes of one finding in one image count as one region.
"""

import numpy as np

from knee_siglip.metrics.bootstrap import Statistic, mean_statistic

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)

CENTRE_PRIOR_SIGMA = 0.25
"""Of the prior's Gaussian, as a share of the side."""


def grounding_metrics(heat: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Metrics of one map (H, W) and the region (H, W), bool, that it should point at.

    Returns:
        cnr, as published: absolute; cnr_signed, negative where the map avoids the region; pointing_game; miou. Empty
        without a region, or where the region is the whole map; a flat map has no contrast-to-noise ratio.
    """
    assert heat.shape == inside.shape, (heat.shape, inside.shape)
    if not inside.any() or inside.all():
        return {}
    contrast = contrast_to_noise(heat, inside)
    found = {} if contrast is None else {"cnr": abs(contrast), "cnr_signed": contrast}
    return found | {"pointing_game": pointing_game(heat, inside), "miou": mean_iou(heat, inside)}


def contrast_to_noise(heat: np.ndarray, inside: np.ndarray) -> float | None:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside); None where neither side varies."""
    if heat[inside].min() == heat[inside].max() and heat[~inside].min() == heat[~inside].max():
        return None
    within, without = heat[inside].astype(np.float64), heat[~inside].astype(np.float64)
    return float((within.mean() - without.mean()) / np.sqrt(within.var() + without.var()))


def pointing_game(heat: np.ndarray, inside: np.ndarray) -> float:
    """1 where the map's highest place is in the region, else 0; of several highest ones, the share that is.

    Source: Zhang et al. 2016 (arXiv:1608.00507), section 4.1, without their tolerance of 15 pixels.
    """
    return float(inside[heat == heat.max()].mean())


def mean_iou(heat: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of the region and the map's part above a threshold, averaged over `THRESHOLDS`."""
    scaled = evidence(heat)
    cuts = [scaled >= threshold for threshold in THRESHOLDS]
    return float(np.mean([(cut & inside).sum() / (cut | inside).sum() for cut in cuts]))


def evidence(heat: np.ndarray) -> np.ndarray:
    """What speaks for the phrase, from 0 to 1: the positive part of a map, divided by its largest value."""
    positive = np.clip(heat, 0, None)
    peak = positive.max()
    return positive / peak if peak > 0 else positive


def box_mask(boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Cells (H, W), bool, whose centre lies in one of the boxes (K, 4): left, top, right, bottom in cells of the map.

    What lies outside the map is cut off.
    """
    rows, columns = (np.arange(length) + 0.5 for length in shape)
    mask = np.zeros(shape, dtype=bool)
    for left, top, right, bottom in boxes:
        mask |= ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return mask


def centre_prior(side: int) -> np.ndarray:
    """(side, side) Gaussian around the centre: what a map reaches that knows nothing of image and phrase."""
    distance = (np.arange(side) + 0.5) / side - 0.5
    return np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * CENTRE_PRIOR_SIGMA**2))


def finding_mean_statistic(values: np.ndarray, findings: np.ndarray) -> Statistic:
    """Mean over findings of the means over their regions, as on MS-CXR: each finding counts alike.

    values, findings: (N,) of the regions; those whose value is NaN take no part. Each finding's mean is NaN in a
    resample that lacks it, which is then the mean over the others.
    """
    parts = [mean_statistic(np.where(findings == name, values, np.nan)) for name in np.unique(findings)]

    def mean(weights: np.ndarray) -> np.ndarray:
        means = np.stack([part(weights) for part in parts])
        known = np.isfinite(means)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, means, 0).sum(axis=0) / known.sum(axis=0))

    return Statistic(mean, np.where(np.isfinite(values), 0, -1))
