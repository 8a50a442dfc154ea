"""Both towers as one module, and one rank's pairs of a contrastive group."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from knee_siglip.encoders.sample_dropout import use_sample_dropout
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.augmentation import augment
from knee_siglip.pairs.batches import Batch, send
from knee_siglip.pairs.randomness import sample_keys
from knee_siglip.pairs.sentences import TextVersions
from knee_siglip.params.sections import AugmentParams

Embeds = tuple[Tensor, Tensor]

IMAGES, TEXTS = 0, 1
"""Streams of random keys, so that a row and a text with the same number draw differently."""


@dataclass(frozen=True)
class LocalBatch:
    """The pairs of a group that one rank encodes.

    `group_size`: pairs of the whole group, on all ranks; `largest`: pairs of the rank with the most. `seed`, `step`:
    seeds of augmentation and dropout.
    """

    batch: Batch
    group_size: int
    largest: int
    seed: int
    step: int

    def positive_ids(self, multi_positive: bool) -> Tensor:
        """(m, K), equal in a column where image and text belong together: one text or study, or only a pair's own."""
        return self.batch.match_ids if multi_positive else self.batch.row_ids.unsqueeze(1)

    def pieces(self, micro_batch_size: int) -> list[slice]:
        """Rows of at most `micro_batch_size` pairs each; as many on every rank, so some may be empty."""
        starts = range(0, self.largest, micro_batch_size)
        return [slice(start, min(start + micro_batch_size, len(self.batch))) for start in starts]


class PairEncoder(nn.Module):
    """Pairs to embeddings; what a rank runs on each piece of its part.

    Args:
        dtype: autocast type; None computes in the weights' own.
        augment_params: largest random changes of training images.
        text_versions: of the training texts, of which each step picks one; None: they stay as they are.
    """

    def __init__(
        self,
        model: KneeRadDinoSigLIPModel,
        dtype: torch.dtype | None,
        augment_params: AugmentParams,
        text_versions: TextVersions | None = None,
    ) -> None:
        super().__init__()
        self.text_versions = text_versions
        self.model, self.dtype, self.augment_params = model, dtype, augment_params
        self.buffer = torch.empty(0)
        self._image_dropout = use_sample_dropout(model.vision)
        self._text_dropout = use_sample_dropout(model.text)
        self.train(model.training)

    def forward(
        self, pixels: Tensor, input_ids: Tensor, places: Tensor, image_keys: Tensor, text_keys: Tensor
    ) -> Embeds:
        """Embeddings (B, D) of images and texts, L2-normalised.

        pixels: grey (B, S, S), or (B, W) features of a frozen vision tower; rows beyond B are left out of the result.
        input_ids: (U, L) distinct texts. places: (B,) each pair's row in them. image_keys (B,), text_keys (U,): random
        keys of dropout.
        """
        for sites, keys in ((self._image_dropout, image_keys), (self._text_dropout, text_keys)):
            for site in sites:
                site.set_keys(keys)
        with torch.autocast(pixels.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            text_embeds = self.model.get_text_features(input_ids)
            if pixels.ndim == 2:
                image_embeds = self.model.project_image_features(pixels)
            else:
                image_embeds = self.model.get_image_features(self._normalise(pixels))
        # index_select, not brackets: on a CPU its gradient is summed in a fixed order
        return image_embeds[: len(places)], text_embeds.index_select(0, places)

    def inputs(self, local: LocalBatch, rows: slice) -> tuple[Tensor, ...]:
        """Arguments of `forward` for some rows of a local batch; a text that several rows share is encoded once.

        In training mode each image and text is augmented by its own key, whatever it is encoded with.
        """
        batch, device = local.batch, local.batch.pixels.device
        if rows.stop <= rows.start:
            return self._stand_in(batch)
        # all that follows from the rows is computed on the CPU and sent: the device has better things to do
        distinct, places = batch.places[rows].unique(return_inverse=True)
        image_keys = self._keys(local, IMAGES, torch.from_numpy(np.asarray(batch.rows[rows], dtype=np.int64)), device)
        text_keys = self._keys(local, TEXTS, batch.distinct[distinct], device)
        pixels = batch.pixels[rows]
        if self.training and pixels.ndim == 3:
            pixels = augment(pixels, self.augment_params, image_keys)
        is_whole = len(distinct) == len(batch.input_ids)
        input_ids = batch.input_ids if is_whole else batch.input_ids[send(distinct, device)]
        if self.training and self.text_versions:
            input_ids = self.text_versions.pick(input_ids, batch.distinct[distinct], text_keys)
        return pixels, input_ids, send(places, device), image_keys, text_keys

    def _stand_in(self, batch: Batch) -> tuple[Tensor, ...]:
        """Input of a piece without pairs: other ranks wait for this one's gradients, which are zero then."""
        pixels = batch.pixels.new_zeros(1, *batch.pixels.shape[1:])
        ids = batch.input_ids.new_zeros(1, batch.input_ids.shape[1])
        key = torch.zeros(1, dtype=torch.int64, device=pixels.device)
        return pixels, ids, key[:0], key, key

    @torch.no_grad()
    def encode_all(self, local: LocalBatch, pieces: Iterable[slice]) -> list[Embeds]:
        """Embeddings of one piece after the other, without a graph."""
        return [self(*self.inputs(local, rows)) for rows in pieces]

    def _normalise(self, pixels: Tensor) -> Tensor:
        """Normalised pixels in a buffer that is reused: on a CPU, allocation costs several times the arithmetic.

        A piece's backward pass comes before the next piece's forward, so no overwritten value is still needed.
        """
        shape = (len(pixels), 1, *pixels.shape[1:])
        mean = self.model.image_mean
        fits = self.buffer.shape[1:] == shape[1:] and self.buffer.device == mean.device
        if not fits or len(self.buffer) < len(pixels) or self.buffer.dtype != mean.dtype:
            self.buffer = torch.empty(shape, dtype=mean.dtype, device=mean.device)
        return self.model.normalise_grey(pixels, out=self.buffer)

    def _keys(self, local: LocalBatch, stream: int, ids: Tensor, device: torch.device) -> Tensor:
        return send(sample_keys(local.seed, 2 * local.step + stream, ids), device)


def pad_texts(
    pixels: Tensor, input_ids: Tensor, places: Tensor, image_keys: Tensor, text_keys: Tensor
) -> tuple[Tensor, ...]:
    """Arguments of `PairEncoder.forward`, with the first text repeated so that few numbers of texts occur.

    No place names the added ones, so they change neither embeddings nor gradients.
    """
    unit = max(1, len(places) // 8)
    added = -len(input_ids) % unit
    if not added:
        return pixels, input_ids, places, image_keys, text_keys
    repeated = torch.cat([input_ids, input_ids[:1].expand(added, -1)])
    return pixels, repeated, places, image_keys, torch.cat([text_keys, text_keys[:1].expand(added)])
