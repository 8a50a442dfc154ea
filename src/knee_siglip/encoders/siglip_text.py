"""SigLIP's text tower as the text encoder.

It was trained on texts padded to its whole position table, without a mask, and pools the last position. So the last
block computes the query, output projection and MLP of that position alone.
"""

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerBase,
    SiglipTextConfig,
    SiglipTextModel,
)
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer, eager_attention_forward

from knee_siglip.encoders.attention import attend
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.protocols import TextEncoder
from knee_siglip.encoders.stream import BlockParts, compute_block, stream_dtype

WELL_TRAINED = 20
"""First positions kept as they are: most captions end there. Source: Long-CLIP (arXiv:2403.15378)."""


class SiglipTextEncoder(TextEncoder):
    """Wraps a `SiglipTextModel`; a folder may hold a whole SigLIP model."""

    description = "SigLIP model"
    config_class = SiglipTextConfig
    model_class = SiglipTextModel
    model: SiglipTextModel

    @staticmethod
    def parts(block: SiglipEncoderLayer) -> BlockParts:
        """Its layers, whose norms come before attention and MLP."""
        return BlockParts(
            attention=block.self_attn,
            norms=(block.layer_norm1, block.layer_norm2),
            output=block.self_attn.out_proj,
            mlp_in=block.mlp.fc1,
            mlp_out=block.mlp.fc2,
            activation=block.mlp.activation_fn,
            eager=eager_attention_forward,
            dropout=block.self_attn.dropout,
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""
        return self.model.encoder.layers

    @property
    def width(self) -> int:
        """Length of a pooled vector."""
        return int(self.model.head.out_features)

    def attention_dropout(self, module: nn.Module) -> float:
        """Probability with which `module` drops attention weights."""
        return float(module.dropout) if isinstance(module, SiglipAttention) else 0.0

    def adopt_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the special tokens: SigLIP's published 49406 and 49407 are CLIP's and lie outside its vocabulary."""
        super().adopt_tokenizer(tokenizer)
        self.model.config.bos_token_id = None

    def extend_positions(self, length: int) -> None:
        """Stretch the position table to `length` tokens, in place; a table that is long enough stays as it is.

        The last position is kept too: the encoder was trained to gather the text there.
        """
        embeddings = self.model.embeddings
        old = embeddings.position_embedding
        if length <= old.num_embeddings:
            return
        new = nn.Embedding(length, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        new.weight = nn.Parameter(_stretch(old.weight.detach(), length), requires_grad=old.weight.requires_grad)
        embeddings.position_embedding = new
        position_ids = torch.arange(length, device=old.weight.device).expand((1, -1))
        embeddings.register_buffer("position_ids", position_ids, persistent=False)
        self.model.config.max_position_embeddings = length

    def pool(self, input_ids: Tensor) -> Tensor:
        """(B, L) token ids to (B, D): the last position after the last norm and the head."""
        hidden = self.model.embeddings(input_ids=input_ids)
        *blocks, last = self.blocks
        assert isinstance(last, SiglipEncoderLayer)
        hidden = hidden.to(stream_dtype(hidden, self.parts(last)))
        for block in blocks:
            hidden = block(hidden, None)
        norm = self.model.final_layer_norm
        normalised = norm(self._pool_last(last, hidden).to(norm.weight.dtype))[:, 0]
        # autocast lets a norm return float32; the head stays there, since its output is what is compared
        with torch.autocast(hidden.device.type, enabled=False):
            output: Tensor = self.model.head(normalised.to(self.model.head.weight.dtype))
        return output

    def _pool_last(self, last: SiglipEncoderLayer, hidden: Tensor) -> Tensor:
        """(B, L, W) to the last position (B, 1, W) after the last block."""
        if hidden.dtype == torch.bfloat16 and self.parts(last).is_plain:
            return compute_block(self.parts(last), hidden, slice(-1, None))
        pooled = hidden[:, -1:]
        attention, states = last.self_attn, last.layer_norm1(hidden)
        attended = attend(attention, states, slice(-1, None), attention.dropout, eager_attention_forward)
        pooled = pooled + attention.out_proj(attended)
        return pooled + last.mlp(last.layer_norm2(pooled))

    def layers(self) -> list[Layer]:
        """FLOPs of `pool` for one text, the lowest layer first."""
        tower, config = self.model, self.model.config
        blocks = count_blocks(self.blocks, self.positions, config.hidden_size, config.intermediate_size)
        norm = count_layer(tower.final_layer_norm, has_norm=True)
        head = count_layer(tower.head, 2 * config.hidden_size * self.width)
        return [count_layer(tower.embeddings), *blocks, norm, head]


def _stretch(table: Tensor, length: int) -> Tensor:
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
