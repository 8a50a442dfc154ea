"""The sigmoid contrastive loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, equation 1), tile by tile.

With logits z = s * cos + b and y = 1 for a positive pair, -1 for others, the loss is the sum over all pairs of
`-log sigmoid(y * z)`, divided by the number of images N. Its gradients need no graph: the derivative by a logit is
`(sigmoid(z) - [y = 1]) / N`, and everything else follows by products with the embeddings. So each tile of logits is
summed and dropped, and memory grows with N, not with N^2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

TILE = 1024
"""Side of a tile of logits: 4 MiB in float32, which stay in a CPU's cache."""

GPU_TILE = 4096
"""64 MiB, which fill a GPU."""


@dataclass(frozen=True)
class Modality:
    """The images or the texts of a contrastive group, or a part of them, with sums over the pairs so far.

    embeds: (n, D), L2-normalised. positive_ids: (n, K) integers; image and text are a positive pair where they agree in
    any column. correct_ids: (n, C), the same for what the accuracy counts as correct. grads: (n, D) sum over the other
    modality of dL/dz * N * its embeddings. best_logits: (2, n) highest logits so far of a correct one, and of a wrong
    one. Both are None where only the loss is wanted.
    """

    embeds: Tensor
    positive_ids: Tensor
    correct_ids: Tensor
    grads: Tensor | None = None
    best_logits: Tensor | None = None

    @classmethod
    def begin(cls, embeds: Tensor, positive_ids: Tensor, correct_ids: Tensor) -> Self:
        """A modality before its first pair."""
        for ids in (positive_ids, correct_ids):
            assert ids.ndim == 2, ids.shape
            assert len(ids) == len(embeds), (ids.shape, embeds.shape)
        best_logits = embeds.new_full((2, len(embeds)), -torch.inf)
        return cls(embeds, positive_ids, correct_ids, torch.zeros_like(embeds), best_logits)

    def correct(self) -> Tensor:
        """(n,) bool: the best of the other modality is right; a tie with a wrong one is not."""
        assert self.best_logits is not None
        return self.best_logits[0] > self.best_logits[1]


def add_pairs(images: Modality, texts: Modality, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Add what every pair of an image and a text contributes to both modalities' `grads` and `best_logits`, in place.

    Returns:
        (2,) float64: sums over these pairs of the loss's terms, and of N * dL/dz.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=images.embeds.device)
    tile = GPU_TILE if images.embeds.is_cuda else TILE
    with _full_float32(images.embeds.device):
        for rows in _tiles(len(images.embeds), tile):
            for columns in _tiles(len(texts.embeds), tile):
                sums += _add_tile(images, texts, rows, columns, logit_scale, logit_bias)
    return sums


def _add_tile(
    images: Modality, texts: Modality, rows: slice, columns: slice, logit_scale: Tensor, logit_bias: Tensor
) -> Tensor:
    image_embeds, text_embeds = images.embeds[rows], texts.embeds[columns]
    logits = (image_embeds @ text_embeds.T).mul_(logit_scale).add_(logit_bias)
    positive = _agree(images.positive_ids[rows], texts.positive_ids[columns])
    if images.best_logits is not None and texts.best_logits is not None:
        right = _agree(images.correct_ids[rows], texts.correct_ids[columns])
        for best, left_out in enumerate((~right, right)):
            kept = logits.masked_fill(left_out, -torch.inf)
            images.best_logits[best, rows] = torch.maximum(images.best_logits[best, rows], kept.amax(dim=1))
            texts.best_logits[best, columns] = torch.maximum(texts.best_logits[best, columns], kept.amax(dim=0))
    # -log sigmoid(-z) = softplus(z) for negatives, softplus(z) - z for positives
    loss = F.softplus(logits).sum(dtype=torch.float64)
    loss -= (logits * positive).sum(dtype=torch.float64)
    slopes = logits.sigmoid_().sub_(positive.to(logits.dtype))
    if images.grads is not None and texts.grads is not None:
        images.grads[rows].addmm_(slopes, text_embeds)
        texts.grads[columns].addmm_(slopes.T, image_embeds)
    return torch.stack([loss, slopes.sum(dtype=torch.float64)])


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor, match_ids: Tensor | None = None
) -> Tensor:
    """Loss () without gradients, which `training/contrastive.py` adds; float32 under any autocast.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, D), L2-normalised, row i belonging to image i.
        logit_scale: () factor of the cosine similarity, i.e. already exponentiated.
        logit_bias: ().
        match_ids: (B, K), as `Batch` has them: pairs that agree in a column are positives too. None: only the
            diagonal is.
    """
    assert image_embeds.shape == text_embeds.shape, (image_embeds.shape, text_embeds.shape)
    own = torch.arange(len(image_embeds), device=image_embeds.device).unsqueeze(1)
    ids = own if match_ids is None else match_ids
    sums = add_pairs(Modality(image_embeds, ids, ids), Modality(text_embeds, ids, ids), logit_scale, logit_bias)
    return (sums[0] / len(ids)).to(image_embeds.dtype)


def _agree(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """(n, K) and (m, K) to (n, m) bool: equal in any column."""
    columns = zip(image_ids.unbind(dim=1), text_ids.unbind(dim=1), strict=True)
    return reduce(torch.logical_or, [images[:, None] == texts[None] for images, texts in columns])


def _tiles(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Disable autocast and TF32, whose cosines have three digits, whatever the rest of the training allows."""
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device.type, enabled=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
