"""Training batches: rows in a seeded order, pixels gathered from the cache, texts tokenised once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from knee_siglip.pairs.sentences import TextVersions

MIRROR_STREAM = 1
"""Keeps the draw of an epoch's mirrored pairs from the draw of its order."""

Order = TypeVar("Order", np.ndarray, list[str])


class Pixels(Protocol):
    """Cached pixels, indexed by manifest rows."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Rows (B,) to uint8 (B, S, S), or to float32 (B, W)."""


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for its pending work, which a GPU does from pinned memory only."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """B pairs of the manifest's `rows` (B,).

    On the device: `pixels` (B, S, S) uint8, or features (B, W) of a frozen vision tower; `input_ids` (U, L) of the
    batch's distinct texts; int64 `row_ids` (B,), the manifest's rows, and `match_ids` (B, K): an image and a text match
    where they agree in a column, of which the first numbers the data set's texts and a second its studies. On the CPU,
    int64: `places` (B,) each pair's row in `input_ids`; `distinct` (U,) the data set's number of each of these texts.
    """

    rows: np.ndarray
    pixels: Tensor
    input_ids: Tensor
    row_ids: Tensor
    match_ids: Tensor
    places: Tensor
    distinct: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; from pinned memory this does not wait for the device's pending work."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """Copy to pinned memory, which a GPU reads by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            pixels=change(self.pixels),
            input_ids=change(self.input_ids),
            row_ids=change(self.row_ids),
            match_ids=change(self.match_ids),
        )


class PairDataset:
    """The pairs of one split, from 0, and from N on each of them mirrored.

    Args:
        pixels: the cache of the whole manifest, or a frozen tower's features of it.
        rows: (N,) the split's rows in the manifest.
        input_ids: (U, L) tokens of the distinct texts.
        text_ids: (N,) which of the distinct texts each row has.
        study_ids: (N,) equal for images of one study, which share what is said of any of them.
        text_versions: of the distinct texts, for training.
        mirrored_text_ids: (N,) which of the distinct texts each mirrored image has; -1: it is never mirrored.
        mirror: probability that a pair is mirrored in an epoch.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: np.ndarray,
        input_ids: Tensor,
        text_ids: np.ndarray,
        study_ids: np.ndarray | None = None,
        text_versions: "TextVersions | None" = None,
        mirrored_text_ids: np.ndarray | None = None,
        mirror: float = 0.0,
    ) -> None:
        assert len(rows) == len(text_ids)
        self.pixels, self.rows, self.text_versions = pixels, rows, text_versions
        self.input_ids = _narrowed(input_ids)
        # studies of one image each match nothing more than the texts do
        studies = [] if study_ids is None or len(np.unique(study_ids)) == len(rows) else [study_ids]
        match_ids = np.stack([text_ids, *studies], axis=1).astype(np.int64)
        self.mirror, self.can_mirror = mirror, np.zeros(len(rows), dtype=bool)
        if mirrored_text_ids is not None:
            self.can_mirror = mirrored_text_ids >= 0
            mirrored_studies = [ids + ids.max() + 1 for ids in studies]  # a mirrored knee is another knee
            mirrored = np.stack([mirrored_text_ids, *mirrored_studies], axis=1).astype(np.int64)
            match_ids = np.concatenate([match_ids, mirrored])
        self.match_ids = torch.from_numpy(match_ids)
        self.text_ids = self.match_ids[:, 0].contiguous()

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, seed: int, number: int) -> np.ndarray:
        """(N,) the pairs in the order of one epoch, each as it is or mirrored; depends on the arguments alone."""
        order = epoch_order(len(self), seed, number)
        if not self.can_mirror.any():
            return order
        drawn = np.random.default_rng([seed, number, MIRROR_STREAM]).random(len(self)) < self.mirror
        return order + len(self) * (drawn & self.can_mirror)[order]

    def batch(self, indices: np.ndarray) -> Batch:
        """The pairs at `indices` (B,) of this split, on the CPU."""
        match_ids = self.match_ids[torch.from_numpy(indices)]
        distinct, places = match_ids[:, 0].unique(return_inverse=True)
        rows = self.rows_of(indices)
        row_ids = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        pixels = torch.from_numpy(self.pixels[rows])
        mirrored = torch.from_numpy(indices >= len(self))
        pixels[mirrored] = pixels[mirrored].flip(-1)
        return Batch(rows, pixels, self.input_ids[distinct].long(), row_ids, match_ids, places, distinct)

    def rows_of(self, indices: np.ndarray) -> np.ndarray:
        """(B,) rows in the manifest of the pairs at `indices` (B,), mirrored or not."""
        rows: np.ndarray = self.rows[indices % len(self)]
        return rows


def _narrowed(input_ids: Tensor) -> Tensor:
    """As int16 or int32: a million texts of 64 tokens take 128 MB in each process instead of 512."""
    fits = input_ids.numel() == 0 or int(input_ids.max()) <= torch.iinfo(torch.int16).max
    return input_ids.to(torch.int16 if fits else torch.int32)


def normalise(pixels: Tensor, mean: Tensor, std: Tensor, out: Tensor | None = None) -> Tensor:
    """Grey (B, S, S), 0-255 of any dtype, to (B, C, S, S) of the mean's dtype.

    mean, std: (1, C, 1, 1), on the 0-1 grey scale. out: at least (B, C, S, S), overwritten and returned: on a CPU,
    allocating memory for every batch costs several times the arithmetic. Leave it out where a gradient still needs the
    previous batch.
    """
    grey = pixels.unsqueeze(1).to(mean.dtype)
    target = None if out is None else out[: len(pixels)]
    return torch.addcmul(-mean / std, grey, 1 / (255 * std), out=target)


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """(N,) order of the rows in one epoch; depends on the arguments alone, so a resumed run sees the same."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def split_groups(order: Order, size: int) -> Iterator[Order]:
    """Consecutive groups of `size`; the last one may be smaller."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
