"""SigLIP's text tower as the text encoder.

It was trained on texts padded to its whole position table, without a mask, and pools the last position. So the last
block computes the query, output projection and MLP of that position alone.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from knee_siglip.encoders.blocks import ACTIVATIONS, Attention, Block, BlockParts, stream_dtype, through_blocks
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.protocols import OwnEncoder, TextEncoder
from knee_siglip.encoders.tower import Group, Tower, TowerConfig
from knee_siglip.tables.tokenizer import Tokenizer

WELL_TRAINED = 20
"""First positions kept as they are: most captions end there. Source: Long-CLIP (arXiv:2403.15378)."""

TRUNCATED_STD = 0.87962566103423978
"""Of a standard normal distribution that is cut at two standard deviations."""


@dataclass
class SiglipTextConfig(TowerConfig):
    """Sizes, under the library's names."""

    model_type = "siglip_text_model"
    architecture = "SiglipTextModel"
    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    projection_size: int | None = None

    def __post_init__(self) -> None:
        self.projection_size = self.projection_size or self.hidden_size


class SiglipBlock(Block):
    """A block of SigLIP's."""

    def __init__(self, config: SiglipTextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        names = ("k_proj", "v_proj", "q_proj", "out_proj")
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = Attention(width, config.num_attention_heads, names, dropout=config.attention_dropout)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Group(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))
        self.activation = ACTIVATIONS[config.hidden_act]

    @property
    def parts(self) -> BlockParts:
        """Its layers."""
        return BlockParts(
            attention=self.self_attn,
            norms=(self.layer_norm1, self.layer_norm2),
            mlp_in=self.mlp.fc1,
            mlp_out=self.mlp.fc2,
            activation=self.activation,
        )


class SiglipTextTower(Tower):
    """The library's `SiglipTextModel`: the same names, the same numbers."""

    def __init__(self, config: SiglipTextConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = Group(
            token_embedding=nn.Embedding(config.vocab_size, width),
            position_embedding=nn.Embedding(config.max_position_embeddings, width),
        )
        self.encoder = Group(layers=nn.ModuleList(SiglipBlock(config) for _ in range(config.num_hidden_layers)))
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, config.projection_size or width)


class SiglipTextEncoder(OwnEncoder, TextEncoder):
    """Wraps a `SiglipTextTower`; a folder may hold a whole SigLIP model."""

    description = "SigLIP model"
    config_class = SiglipTextConfig
    model_class = SiglipTextTower
    model: SiglipTextTower

    @staticmethod
    def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a text model, or of a whole SigLIP model."""
        return {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}

    @torch.no_grad()
    def draw_weights(self) -> None:
        """As the library does, which draws most weights twice or three times and keeps the last draw.

        Without the others a seed would give other weights than with earlier versions of this project.
        """
        embeddings = self.model.embeddings
        for table in (embeddings.token_embedding, embeddings.position_embedding):
            nn.init.normal_(table.weight, std=0.02)
            nn.init.normal_(table.weight, std=math.sqrt(1 / table.embedding_dim))
        for block in self.own_blocks:
            attention, mlp = block.parts.attention, (block.parts.mlp_in, block.parts.mlp_out)
            for layer in attention.children():
                _draw_linear(layer)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.output):
                nn.init.xavier_uniform_(layer.weight)
            for layer in mlp:
                _draw_linear(layer)
            for layer in mlp:
                nn.init.xavier_uniform_(layer.weight)
            for layer in mlp:
                nn.init.normal_(layer.bias, std=1e-6)
        _draw_linear(self.model.head)

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""
        blocks: nn.ModuleList = self.model.encoder.layers
        return blocks

    @property
    def width(self) -> int:
        """Length of a pooled vector."""
        return int(self.model.head.out_features)

    def adopt_tokenizer(self, tokenizer: Tokenizer) -> None:
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
        self.model.config.max_position_embeddings = length

    def pool(self, input_ids: Tensor) -> Tensor:
        """(B, L) token ids to (B, D): the last position after the last norm and the head."""
        embeddings = self.model.embeddings
        hidden = embeddings.token_embedding(input_ids) + embeddings.position_embedding.weight[: input_ids.shape[1]]
        hidden = hidden.to(stream_dtype(hidden, self.own_blocks[-1].parts))
        norm, head = self.model.final_layer_norm, self.model.head
        normalised = norm(through_blocks(self.own_blocks, hidden, slice(-1, None)).to(norm.weight.dtype))[:, 0]
        # autocast lets a norm return float32; the head stays there, since its output is what is compared
        with torch.autocast(hidden.device.type, enabled=False):
            output: Tensor = head(normalised.to(head.weight.dtype))
        return output

    def layers(self) -> list[Layer]:
        """FLOPs of `pool` for one text, the lowest layer first."""
        tower, config = self.model, self.model.config
        blocks = count_blocks(self.blocks, self.positions, config.hidden_size, config.intermediate_size)
        norm = count_layer(tower.final_layer_norm, has_norm=True)
        head = count_layer(tower.head, 2 * config.hidden_size * self.width)
        return [count_layer(tower.embeddings), *blocks, norm, head]


def _draw_linear(layer: Any) -> None:
    """Normal values, then those of a truncated normal distribution of variance 1 / inputs; no bias."""
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.trunc_normal_(layer.weight, std=math.sqrt(1 / layer.in_features) / TRUNCATED_STD)
    nn.init.zeros_(layer.bias)


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
