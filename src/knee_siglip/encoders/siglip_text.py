"""SigLIP's text tower as the text encoder.

It was trained padded to its whole position table, without a mask, and pools the last position: so in the last block
that position's query, output projection and MLP alone are computed.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, SiglipTextConfig, SiglipTextModel
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer, eager_attention_forward

from knee_siglip.encoders.attention import attend
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.positions import stretch
from knee_siglip.encoders.protocols import TextEncoder


class SiglipTextEncoder(TextEncoder):
    """Wraps a `SiglipTextModel`; a folder may hold a whole SigLIP model."""

    description = "SigLIP model"
    config_class = SiglipTextConfig
    model_class = SiglipTextModel
    model: SiglipTextModel

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
        """SigLIP's published 49406 and 49407 are left from CLIP and lie outside its vocabulary."""
        super().adopt_tokenizer(tokenizer)
        self.model.config.bos_token_id = None

    def extend_positions(self, length: int) -> None:
        """Stretch the position table to `length` tokens, in place; a table that is long enough stays as it is.

        The last position of the new table is the last of the old one: the encoder was trained to gather the text there.
        """
        embeddings = self.model.embeddings
        old = embeddings.position_embedding
        if length <= old.num_embeddings:
            return
        new = nn.Embedding(length, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        new.weight = nn.Parameter(stretch(old.weight.detach(), length), requires_grad=old.weight.requires_grad)
        embeddings.position_embedding = new
        position_ids = torch.arange(length, device=old.weight.device).expand((1, -1))
        embeddings.register_buffer("position_ids", position_ids, persistent=False)
        self.model.config.max_position_embeddings = length

    def pool(self, input_ids: Tensor) -> Tensor:
        """(B, L) token ids to (B, D): the last position after the last norm and the head."""
        hidden = self.model.embeddings(input_ids=input_ids)
        *blocks, last = self.blocks
        for block in blocks:
            hidden = block(hidden, None)
        assert isinstance(last, SiglipEncoderLayer)
        pooled = hidden[:, -1:]
        attention, states = last.self_attn, last.layer_norm1(hidden)
        attended = attend(attention, states, slice(-1, None), attention.dropout, eager_attention_forward)
        pooled = pooled + attention.out_proj(attended)
        pooled = pooled + last.mlp(last.layer_norm2(pooled))
        output: Tensor = self.model.head(self.model.final_layer_norm(pooled)[:, 0])
        return output

    def layers(self) -> list[Layer]:
        """FLOPs of `pool` for one text, the lowest layer first."""
        tower, config = self.model, self.model.config
        blocks = count_blocks(self.blocks, self.positions, config.hidden_size, config.intermediate_size)
        norm = count_layer(tower.final_layer_norm, has_norm=True)
        head = count_layer(tower.head, 2 * config.hidden_size * self.width)
        return [count_layer(tower.embeddings), *blocks, norm, head]
