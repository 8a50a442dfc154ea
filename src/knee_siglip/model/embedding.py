"""Embeddings of images, texts and prompt ensembles with a loaded checkpoint."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from knee_siglip.model.checkpoint import Checkpoint
from knee_siglip.pairs.batches import split_groups
from knee_siglip.tables.text import tokenize


@torch.inference_mode()
def embed_pixels(checkpoint: Checkpoint, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Batches of uint8 grey (B, S, S), fitted by the checkpoint's transform, to (N, D) float32, L2-normalised."""
    model = checkpoint.model
    parts = [_no_rows(checkpoint)]
    values = torch.empty(0, device=model.device)
    for batch in batches:
        pixels = torch.from_numpy(np.ascontiguousarray(batch)).to(model.device)
        if len(values) < len(pixels):
            values = torch.empty(len(pixels), 1, *pixels.shape[1:], device=model.device)
        parts.append(model.get_image_features(model.normalise_grey(pixels, out=values)).cpu().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def embed_texts(checkpoint: Checkpoint, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Texts (N,), normalised here, to (N, D) float32, L2-normalised. Equal texts are encoded once."""
    model = checkpoint.model
    text_ids, distinct = pd.factorize(np.asarray(texts, dtype=object))
    parts = [_no_rows(checkpoint)]
    for chunk in split_groups(distinct, batch_size):
        input_ids = tokenize(
            checkpoint.tokenizer, chunk.tolist(), checkpoint.max_text_length, checkpoint.position_count
        )
        parts.append(model.get_text_features(input_ids.to(model.device)).cpu().numpy())
    return np.concatenate(parts)[text_ids]


def prompt_embeddings(checkpoint: Checkpoint, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """Prompt ensembles of C classes to (C, D)."""
    return np.stack([ensemble(embed_texts(checkpoint, texts)) for texts in prompts])


def ensemble(prompt_embeds: np.ndarray) -> np.ndarray:
    """(P, D) L2-normalised prompts to (D,): averaged, and normalised again.

    Source: Radford et al. 2021 (arXiv:2103.00020), section 3.1.4.
    """
    return F.normalize(torch.from_numpy(prompt_embeds.mean(axis=0)), dim=-1).numpy()


def _no_rows(checkpoint: Checkpoint) -> np.ndarray:
    return np.zeros((0, checkpoint.model.text.width), dtype=np.float32)
