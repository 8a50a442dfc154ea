"""Embeddings of images, texts and prompt ensembles with a loaded checkpoint.

The vision tower computes in `checkpoint.vision_dtype`, everything else in float32: a text's rounding is one error in
its cosines with all images and moves recall more than the images' own, and distinct texts are few.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from knee_siglip.core.errors import UserError
from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.model.device import compute_in, is_out_of_memory
from knee_siglip.pairs.batches import split_groups
from knee_siglip.tables.text import tokenize

logger = logging.getLogger(__name__)


@torch.inference_mode()
def embed_pixels(checkpoint: Checkpoint, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Batches of uint8 grey (B, S, S), fitted by the checkpoint's transform, to (N, D) float32, L2-normalised.

    Raises:
        UserError: not even one image fits into the device's memory.
    """
    model = checkpoint.model
    values = torch.empty(0, device=model.device)

    def encode(pixels: Tensor) -> Tensor:
        nonlocal values
        if len(values) < len(pixels):
            values = torch.empty(len(pixels), 1, *pixels.shape[1:], device=model.device)
        grey = model.normalise_grey(pixels.to(model.device), out=values)
        return compute_in(checkpoint.vision_dtype, model.device, lambda: model.get_image_features(grey))

    fitting = _FittingBatches(model.device, encode, "images")
    return _joined(checkpoint, (fitting.embed(torch.from_numpy(np.ascontiguousarray(batch))) for batch in batches))


@torch.inference_mode()
def embed_texts(checkpoint: Checkpoint, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Texts (N,), normalised here, to (N, D) float32, L2-normalised. Equal texts are encoded once.

    Raises:
        UserError: not even one text fits into the device's memory.
    """
    model = checkpoint.model
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    fitting = _FittingBatches(model.device, lambda ids: model.get_text_features(ids.to(model.device)), "texts")
    tokens = (
        tokenize(checkpoint.tokenizer, chunk, checkpoint.max_text_length, checkpoint.position_count)
        for chunk in split_groups(list(numbers), batch_size)
    )
    return _joined(checkpoint, (fitting.embed(input_ids) for input_ids in tokens))[[numbers[text] for text in texts]]


def ensemble(prompt_embeds: np.ndarray) -> np.ndarray:
    """(P, D) L2-normalised prompts to (D,): averaged, and normalised again.

    Source: Radford et al. 2021 (arXiv:2103.00020), section 3.1.4.
    """
    return F.normalize(torch.from_numpy(prompt_embeds.mean(axis=0)), dim=-1).numpy()


class _FittingBatches:
    """Embeds batches, in smaller parts once the device's memory has run out.

    encode: (B, ...) on the CPU to (B, D) on the device. noun: names the rows in messages.
    """

    def __init__(self, device: torch.device, encode: Callable[[Tensor], Tensor], noun: str) -> None:
        self.device, self.encode, self.noun = device, encode, noun
        self.largest: int | None = None

    def embed(self, batch: Tensor) -> np.ndarray:
        """(B, ...) on the CPU to (B, D) float32."""
        while True:
            try:
                parts = batch.split(self.largest or len(batch))
                return np.concatenate([self.encode(part).cpu().numpy() for part in parts])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # handled below: until the handler ends, the traceback keeps what filled the memory
            self._halve(len(batch))

    def _halve(self, count: int) -> None:
        tried = min(self.largest or count, count)
        if tried == 1:
            raise UserError(f"{self.device} ran out of memory: not even one of the {self.noun} fits")
        self.largest = (tried + 1) // 2
        logger.warning("%s ran out of memory with %d %s; now %d at a time", self.device, tried, self.noun, self.largest)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _joined(checkpoint: Checkpoint, parts: Iterable[np.ndarray]) -> np.ndarray:
    """The parts one after the other; (0, D) where there are none."""
    return np.concatenate([np.zeros((0, checkpoint.model.text.width), dtype=np.float32), *parts])
