"""Room for longer texts: SigLIP's table of text positions, stretched."""

import torch
from torch import Tensor, nn
from transformers import SiglipTextModel

WELL_TRAINED = 20
"""First positions kept as they are: most captions end there. Source: Long-CLIP (arXiv:2403.15378)."""


def extend_text_positions(text_model: SiglipTextModel, length: int) -> None:
    """Stretch the position table to `length` tokens, in place; a table that is long enough stays as it is.

    Inputs are padded to the whole table and the last position is pooled, so the last position of the new table is the
    last of the old one: the encoder was trained to gather the text there.
    """
    embeddings = text_model.embeddings
    old = embeddings.position_embedding
    if length <= old.num_embeddings:
        return
    new = nn.Embedding(length, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
    new.weight = nn.Parameter(stretch(old.weight.detach(), length), requires_grad=old.weight.requires_grad)
    embeddings.position_embedding = new
    position_ids = torch.arange(length, device=old.weight.device).expand((1, -1))
    embeddings.register_buffer("position_ids", position_ids, persistent=False)
    text_model.config.max_position_embeddings = length


def stretch(table: Tensor, length: int) -> Tensor:
    """Position table (P, D) to (length, D), length >= P.

    The first `WELL_TRAINED` rows (of a short table the first third) are copied; the rest is linearly interpolated
    between them and the last row, which is kept too.
    """
    kept = min(WELL_TRAINED, len(table) // 3)
    places = torch.linspace(kept, len(table) - 1, length - kept, dtype=torch.float64, device=table.device)
    low = places.floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    share = (places - low).to(torch.float32).unsqueeze(1)
    stretched = torch.lerp(table[low].float(), table[high].float(), share)
    return torch.cat([table[:kept], stretched.to(table.dtype)])
