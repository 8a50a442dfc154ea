"""Candidates for near-duplicates: a projection that ignores crops, then matrix products.

All knees look alike: between the fingerprints of two of them the correlation is up to 0.95, as high as between an image
and its own crop. What tells them apart is found by a linear discriminant analysis of the set itself (Fisher 1936; here
the classes are an image and its simulated crops): after it an image's copy is nearest by far.
"""

import numpy as np
from scipy.linalg import eigh

from knee_siglip.validation.images.registration import interpolation

DIMENSIONS = 128
FITTED_ON = 1000
CROPS = 3
RIDGE = 0.1
FEW = 64
"""Too few to learn from; here every image is a candidate."""

LEAST_COSINE = 0.45
"""Of the projections of candidates. Planted near-duplicates have 0.50 and more; most neighbours have less."""

QUERIES_PER_BLOCK = 256

RELATIONS = (
    "as it is",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "mirrored",
    "mirrored and turned by 90 degrees",
    "upside down",
    "mirrored and turned by 270 degrees",
)
"""The eight orientations of an image."""


def turned(images: np.ndarray, orientation: int) -> np.ndarray:
    """Images (..., S, S) in the orientation of that number in RELATIONS."""
    mirrored, turns = divmod(orientation, 4)
    return np.rot90(images[..., ::-1] if mirrored else images, turns, (-2, -1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) to length 1."""
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + np.float32(1e-9))


def fit_projection(prints: np.ndarray) -> np.ndarray:
    """prints: int8 (N, S, S). Returns (S * S, D): large where images differ, small where a crop changes one.

    The set's mean direction is taken out, so that an inverted image has the same projection with the other sign.
    """
    size = prints.shape[-1] ** 2
    if len(prints) <= FEW:
        return np.eye(size, dtype=np.float32)
    rng = np.random.default_rng(0)
    chosen = prints[np.sort(rng.choice(len(prints), min(FITTED_ON, len(prints)), replace=False))].astype(np.float32)
    whole = unit(chosen.reshape(len(chosen), -1))
    mean = whole.mean(axis=0)
    mean /= np.linalg.norm(mean) + 1e-9
    change = np.concatenate([unit(_cropped(chosen, rng)) - whole for _ in range(CROPS)])
    within = change.T @ change / len(change)
    within[np.diag_indices(size)] += np.trace(within) / size * RIDGE
    between = whole - np.outer(whole @ mean, mean)
    dimensions = min(DIMENSIONS, len(prints) - 1)
    _, vectors = eigh(between.T @ between / len(between), within, subset_by_index=[size - dimensions, size - 1])
    return (vectors - np.outer(mean, mean @ vectors)).astype(np.float32)


def nearest(
    prints: np.ndarray, queries: np.ndarray, splits: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` likeliest partners of each query among images of other splits, in any orientation, also inverted.

    prints: int8 (N, S, S); queries: (Q,) indices; splits: (N,) bit mask of the splits that an image is in.
    Returns image (Q, count), orientation of the query (Q, count) and sign (Q, count); image -1 where there are fewer.
    """
    projection = fit_projection(prints)
    least = LEAST_COSINE if len(prints) > FEW else 0.0
    gallery = unit(_flat(prints) @ projection)
    count = min(count, len(prints) - 1)
    results = [
        _nearest_block(prints, gallery, projection, block, splits, count, least)
        for block in np.split(queries, range(QUERIES_PER_BLOCK, len(queries), QUERIES_PER_BLOCK))
    ]
    images, orientations, signs = zip(*results, strict=True)
    return np.concatenate(images), np.concatenate(orientations), np.concatenate(signs)


def _nearest_block(
    prints: np.ndarray,
    gallery: np.ndarray,
    projection: np.ndarray,
    block: np.ndarray,
    splits: np.ndarray,
    count: int,
    least: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    queries = [unit(_flat(turned(prints[block], number)) @ projection) for number in range(len(RELATIONS))]
    best = np.zeros((len(block), len(gallery)), dtype=np.float32)
    product = np.empty_like(best)
    for vectors in queries:
        np.matmul(vectors, gallery.T, out=product)
        np.abs(product, out=product)
        np.maximum(best, product, out=best)
    best[~apart(splits[block][:, None], splits[None, :])] = -1
    best[np.arange(len(block)), block] = -1
    images = np.argpartition(-best, count - 1, axis=1)[:, :count]
    scores = np.take_along_axis(best, images, axis=1)
    products = np.einsum("oqd,qkd->oqk", np.stack(queries), gallery[images])
    orientations = np.abs(products).argmax(axis=0)
    signs = np.sign(np.take_along_axis(products, orientations[None], axis=0)[0])
    return np.where(scores < least, -1, images), orientations, signs


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether some row of one is in another split than some row of the other; bit masks."""
    alone = (first & (first - 1)) == 0
    return (first != second) | ~alone


def _flat(prints: np.ndarray) -> np.ndarray:
    return unit(np.ascontiguousarray(prints).reshape(len(prints), -1).astype(np.float32))


def _cropped(squares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image with up to 5 % cut off every side, flattened; 50 images share a box."""
    size = squares.shape[-1]
    parts = []
    for start in range(0, len(squares), 50):
        top, bottom, left, right = rng.uniform(0, 0.05, 4)
        rows, columns = interpolation(size, top, bottom), interpolation(size, left, right)
        parts.append(rows @ squares[start : start + 50] @ columns.T)
    return np.concatenate(parts).reshape(len(squares), -1)
