"""A table of text positions, stretched for longer texts."""

import torch
from torch import Tensor

WELL_TRAINED = 20
"""First positions kept as they are: most captions end there. Source: Long-CLIP (arXiv:2403.15378)."""


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
