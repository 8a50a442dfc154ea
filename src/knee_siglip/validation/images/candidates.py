"""Candidates for near-duplicates: a projection that ignores crops, then matrix products.

All knees look alike: between the fingerprints of two of them the correlation is up to 0.95, as high as between an image
and its own crop. What tells them apart is found by a linear discriminant analysis of the set itself (Fisher 1936; here
the classes are an image and its simulated crops): after it an image's copy is nearest by far.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

from knee_siglip.core.threads import available_cores
from knee_siglip.validation.images.registration import interpolation

DIMENSIONS = 128
FITTED_ON = 1000
CROPS = 3
RIDGE = 0.1
FEW = 64
"""Too few to learn from; here every image is a candidate."""

LEAST_COSINE = 0.45
"""Of the projections of candidates. Planted near-duplicates have 0.50 and more; most neighbours have less."""

QUERIES_PER_BLOCK = 128
TILE = 512
"""Images per product: with eight orientations of a block of queries 2 MB. Measured: wider tiles leave the caches."""

MERGED_BY = 2
"""Of the wanted number of pairs the multiple from which they are sorted out."""

HEAD = 64
"""Of the DIMENSIONS the part that is compared first. On 2,100 real knees it holds 0.8 of the squared length."""

FEW_LEFT = 0.03
"""Share of pairs up to which gathering them one by one is faster than the product of all."""

ROUNDING = 1e-5
"""Above what float32 loses in a product of unit vectors."""

PRINTS_AT_ONCE = 8192

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
    vectors -= np.outer(mean, mean @ vectors)
    projected = unit(whole @ vectors)
    _, axes = np.linalg.eigh(projected.T @ projected)  # turned to its main axes: no cosine changes, see _Gallery
    return (vectors @ axes[:, ::-1]).astype(np.float32)


class Candidates(NamedTuple):
    """Likely pairs (C,), sorted by query, then the likeliest first.

    query: index into `queries`; image: index into `prints`; orientation, sign: what the query is given to match.
    """

    query: np.ndarray
    image: np.ndarray
    orientation: np.ndarray
    cosine: np.ndarray

    @property
    def sign(self) -> np.ndarray:
        """-1 where the query is inverted."""
        return np.sign(self.cosine)


def nearest(prints: np.ndarray, queries: np.ndarray, splits: np.ndarray, count: int) -> Candidates:
    """The `count` likeliest partners of each query among images of other splits, in any orientation, also inverted.

    prints: int8 (N, S, S); queries: (Q,) indices; splits: (N,) bit mask of the splits that an image is in. Exact: what
    the bound of `_Gallery` leaves out cannot be among them. Blocks of queries are shared among threads, since NumPy
    works outside Python's lock; memory is that of the projections and a few blocks, whatever N and Q.
    """
    projection = fit_projection(prints)
    gallery = _Gallery(_project(prints, projection))
    least = LEAST_COSINE if len(prints) > FEW else 0.0
    blocks = np.split(queries, range(QUERIES_PER_BLOCK, len(queries), QUERIES_PER_BLOCK))

    def search(block: np.ndarray) -> Candidates:
        vectors = np.stack([_project(turned(prints[block], number), projection) for number in range(len(RELATIONS))])
        return gallery.search(vectors, block, splits, count, least)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(available_cores()) as threads:
        found = list(threads.map(search, blocks))
    numbered = [hits._replace(query=hits.query + at * QUERIES_PER_BLOCK) for at, hits in enumerate(found)]
    return Candidates(*map(np.concatenate, zip(*numbered, strict=True)))


NOWHERE = np.empty(0, dtype=np.int64)
NONE_FOUND = Candidates(NOWHERE, NOWHERE, NOWHERE, np.empty(0, dtype=np.float32))


class _Gallery:
    """Unit vectors (N, D) to search by a bound (Cauchy and Schwarz): |a.b| <= |a'.b'| + |a"||b"|.

    a' are the first HEAD entries, which hold most of the length, and a" the rest. Only pairs whose bound reaches what
    the query still needs get the whole product. Sorted by |b"|, so that one value bounds it well for a whole tile.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        rest = np.linalg.norm(vectors[:, HEAD:], axis=1)
        self.order = np.argsort(rest, kind="stable")
        self.vectors, self.rest = vectors[self.order], rest[self.order]
        self.heads = np.ascontiguousarray(self.vectors[:, :HEAD])

    def search(
        self, vectors: np.ndarray, block: np.ndarray, splits: np.ndarray, count: int, least: float
    ) -> Candidates:
        """The `count` nearest of each query, at least `least`. vectors: (O, B, D) of each orientation; block: (B,)."""
        flat = vectors.reshape(-1, vectors.shape[2])
        rest = np.linalg.norm(flat[:, HEAD:], axis=1)
        needed = np.full(len(block), least, dtype=np.float32)
        product = np.empty((len(flat), TILE), dtype=np.float32)
        hits = NONE_FOUND
        many = MERGED_BY * count * len(block)
        for start in range(0, len(self.vectors), TILE):
            wanted = np.tile(needed, len(vectors))
            rows, columns, cosines = self._alike(flat, rest, wanted, slice(start, start + TILE), product)
            orientations, places = np.divmod(rows, len(block))
            images = self.order[start + columns]
            allowed = apart(splits[block[places]], splits[images]) & (images != block[places])
            fresh = Candidates(places[allowed], images[allowed], orientations[allowed], cosines[allowed])
            hits = Candidates(*map(np.concatenate, zip(hits, fresh, strict=True)))
            if len(hits.query) > many:
                hits = _best(hits, count)
                full = np.bincount(hits.query, minlength=len(block)) == count
                lowest = np.full(len(block), np.inf, dtype=np.float32)
                np.minimum.at(lowest, hits.query, np.abs(hits.cosine))
                needed[full] = lowest[full]
        return _best(hits, count)

    def _alike(
        self, queries: np.ndarray, rest: np.ndarray, needed: np.ndarray, tile: slice, buffer: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, column in the tile and cosine of the pairs with |cosine| >= needed (R,).

        buffer: (R, TILE) to work in, since fresh memory for each product costs as much as the product.
        """
        heads = self.heads[tile]
        product = buffer.reshape(-1)[: len(queries) * len(heads)].reshape(len(queries), len(heads))
        np.matmul(queries[:, :HEAD], heads.T, out=product)
        np.abs(product, out=product)
        bound = needed - rest * self.rest[tile][-1] - ROUNDING
        rows, columns = np.divmod(np.flatnonzero(product >= bound[:, None]), len(heads))
        if len(rows) > product.size * FEW_LEFT:
            np.matmul(queries, self.vectors[tile].T, out=product)
            rows, columns = np.divmod(np.flatnonzero(np.abs(product) >= needed[:, None]), len(heads))
            return rows, columns, product[rows, columns]
        cosines = np.einsum("cd,cd->c", queries[rows], self.vectors[tile][columns])
        alike = np.abs(cosines) >= needed[rows]
        return rows[alike], columns[alike], cosines[alike]


def _best(hits: Candidates, count: int) -> Candidates:
    """Each pair in its best orientation, and of these the `count` best of each query, the best first."""
    likeliest = np.lexsort((hits.orientation, hits.image, -np.abs(hits.cosine), hits.query))
    hits = Candidates(*(values[likeliest] for values in hits))
    pairs = np.stack([hits.query, hits.image], axis=1)
    first = np.sort(np.unique(pairs, axis=0, return_index=True)[1])
    hits = Candidates(*(values[first] for values in hits))
    rank = np.arange(len(hits.query)) - np.searchsorted(hits.query, hits.query)
    return Candidates(*(values[rank < count] for values in hits))


def apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether some row of one is in another split than some row of the other; bit masks."""
    alone = (first & (first - 1)) == 0
    return (first != second) | ~alone


def _project(prints: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """int8 (N, S, S) to unit vectors float32 (N, D)."""
    projected = np.empty((len(prints), projection.shape[1]), dtype=np.float32)
    for start in range(0, len(prints), PRINTS_AT_ONCE):
        part = np.ascontiguousarray(prints[start : start + PRINTS_AT_ONCE])
        projected[start : start + len(part)] = unit(part.reshape(len(part), -1).astype(np.float32)) @ projection
    return unit(projected)


def _cropped(squares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image with up to 5 % cut off every side, flattened; 50 images share a box."""
    size = squares.shape[-1]
    parts = []
    for start in range(0, len(squares), 50):
        top, bottom, left, right = rng.uniform(0, 0.05, 4)
        rows, columns = interpolation(size, top, bottom), interpolation(size, left, right)
        parts.append(rows @ squares[start : start + 50] @ columns.T)
    return np.concatenate(parts).reshape(len(squares), -1)
