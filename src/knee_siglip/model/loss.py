"""The sigmoid contrastive loss of SigLIP (Zhai et al. 2023, arXiv:2303.15343, equation 1), and its accuracy."""

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor, text_ids: Tensor | None = None
) -> Tensor:
    """Sum over all pairs of `-log sigmoid(y * logit)`, divided by the number of images; float32 under any autocast.

    Args:
        image_embeds: (B, D), L2-normalised.
        text_embeds: (B, D), L2-normalised, row i belonging to image i.
        logit_scale: () factor of the cosine similarity, i.e. already exponentiated.
        logit_bias: ().
        text_ids: (B,) equal where the texts are equal: such pairs are positives too. None: only the diagonal is.

    Returns:
        () loss.
    """
    assert image_embeds.shape == text_embeds.shape, (image_embeds.shape, text_embeds.shape)
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = logit_scale * image_embeds @ text_embeds.T + logit_bias
        signs = 2.0 * positives(len(logits), text_ids, logits.device).to(logits.dtype) - 1.0
        return -F.logsigmoid(signs * logits).sum() / len(logits)


def positives(count: int, text_ids: Tensor | None, device: torch.device) -> Tensor:
    """(B, B) bool: which text is right for which image."""
    if text_ids is None:
        return torch.eye(count, dtype=torch.bool, device=device)
    return text_ids.unsqueeze(1) == text_ids.unsqueeze(0)


@torch.no_grad()
def batch_accuracy(image_embeds: Tensor, text_embeds: Tensor, text_ids: Tensor) -> Tensor:
    """() mean of image-to-text and text-to-image top-1 within the batch (B, D); an equal text counts as correct."""
    similarity = image_embeds @ text_embeds.T
    to_text = text_ids[similarity.argmax(dim=1)] == text_ids
    to_image = text_ids[similarity.argmax(dim=0)] == text_ids
    return (to_text.float().mean() + to_image.float().mean()) / 2
