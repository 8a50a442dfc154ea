"""Dinov2 as the image encoder: RAD-DINO, and the small one that ships with the project.

It computes only what is used; the results are the library's, up to rounding. Only the CLS token is pooled, so the last
block computes the query, output projection and MLP of that token alone. A grey image is three equal channels, so one
channel through the sum of the patch filters gives the same.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knee_siglip.encoders.blocks import (
    ACTIVATIONS,
    Attention,
    Block,
    BlockParts,
    DropPath,
    LayerScale,
    stream_dtype,
    through_blocks,
)
from knee_siglip.encoders.flops import Layer, count_blocks, count_layer
from knee_siglip.encoders.protocols import OwnEncoder, VisionEncoder
from knee_siglip.encoders.tower import Group, Tower, TowerConfig

PUBLISHED_NAMES = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".mlp.weights_out.": ".mlp.down_proj.",
}
"""Of transformers before 5, which RAD-DINO was saved with."""

JOINED = ".mlp.weights_in."
"""There, gate and input of a gated MLP are one layer."""


@dataclass
class Dinov2Config(TowerConfig):
    """Sizes, under the library's names."""

    model_type = "dinov2"
    architecture = "Dinov2Model"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    drop_path_rate: float = 0.0
    use_swiglu_ffn: bool = False
    # pretraining's mask token would be a parameter without a gradient
    use_mask_token: bool = False

    @property
    def mlp_width(self) -> int:
        """Of the MLP's inner layer."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width  # as the library rounds it


class Dinov2Block(Block):
    """A block with layer scale; the MLP may be gated (SwiGLU)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        width, inner, heads = config.hidden_size, config.mlp_width, config.num_attention_heads
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = Attention(width, heads, names, config.qkv_bias, config.attention_probs_dropout_prob)
        self.layer_scale1 = LayerScale(width, config.layerscale_value)
        self.drop_path = DropPath(config.drop_path_rate) if config.drop_path_rate > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        if config.use_swiglu_ffn:
            gate, up, down = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)
            self.mlp = Group(gate_proj=gate, up_proj=up, down_proj=down)
        else:
            self.mlp = Group(fc1=nn.Linear(width, inner), fc2=nn.Linear(inner, width))
        self.activation = ACTIVATIONS["silu" if config.use_swiglu_ffn else config.hidden_act]
        self.layer_scale2 = LayerScale(width, config.layerscale_value)

    @property
    def parts(self) -> BlockParts:
        """Its layers."""
        mlp = self.mlp
        is_gated = hasattr(mlp, "gate_proj")
        return BlockParts(
            attention=self.attention,
            norms=(self.norm1, self.norm2),
            mlp_in=mlp.up_proj if is_gated else mlp.fc1,
            mlp_out=mlp.down_proj if is_gated else mlp.fc2,
            gate=mlp.gate_proj if is_gated else None,
            activation=self.activation,
            scales=(self.layer_scale1, self.layer_scale2),
            drop_path=self.drop_path,
        )


class Dinov2Embeddings(nn.Module):
    """Patches, their positions and the CLS token."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        projection = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.patch_embeddings = Group(projection=projection)
        positions = torch.empty(1, (config.image_size // patch) ** 2 + 1, width)
        self.position_embeddings = nn.Parameter(nn.init.normal_(positions))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)


class Dinov2Tower(Tower):
    """The library's `Dinov2Model`: the same names, the same numbers."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__(config)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = Group(layer=nn.ModuleList(Dinov2Block(config) for _ in range(config.num_hidden_layers)))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Dinov2Encoder(OwnEncoder, VisionEncoder):
    """Wraps a `Dinov2Tower`."""

    description = "Dinov2 model (such as RAD-DINO)"
    config_class = Dinov2Config
    model_class = Dinov2Tower
    model: Dinov2Tower

    @staticmethod
    def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a `Dinov2Model`, alone or below a task's head."""
        found = {}
        for published, tensor in weights.items():
            name = published.removeprefix("dinov2.")
            for old, new in PUBLISHED_NAMES.items():
                name = name.replace(old, new)
            if JOINED in name:
                for half, layer in zip(tensor.chunk(2), (".mlp.gate_proj.", ".mlp.up_proj."), strict=True):
                    found[name.replace(JOINED, layer)] = half
            else:
                found[name] = tensor
        return found

    @torch.no_grad()
    def draw_weights(self) -> None:
        """As the library does: normal values first, which those of a truncated normal distribution replace.

        Without the first ones a seed would give other weights than with earlier versions of this project.
        """
        embeddings, std = self.model.embeddings, self.model.config.initializer_range
        layers = [layer for layer in self.blocks.modules() if isinstance(layer, nn.Linear)]
        for layer in (*layers, embeddings.patch_embeddings.projection):
            nn.init.normal_(layer.weight, std=std)
            nn.init.trunc_normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(embeddings.position_embeddings, std=std)
        nn.init.trunc_normal_(embeddings.cls_token, std=std)

    @property
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""
        blocks: nn.ModuleList = self.model.encoder.layer
        return blocks

    def pool(self, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The CLS token (B, W) after the last norm; see `VisionEncoder.pool`."""
        embedded = self._embed(pixel_values, mean, std)
        return self._norm(through_blocks(self.own_blocks, embedded, slice(0, 1)))[:, 0]

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """CLS token, then patches row by row, after the last norm: (B, 1 + P, W)."""
        return self._norm(through_blocks(self.own_blocks, self._embed(pixel_values)))

    def tokens_and_attentions(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`tokens`, and each block's attention (B, H, 1 + P, 1 + P)."""
        hidden, attentions = self._embed(pixel_values), list[Tensor]()
        for block in self.own_blocks:
            hidden, _, weights = block.compute(hidden, keep_weights=True)
            assert weights is not None
            attentions.append(weights)
        return self._norm(hidden), tuple(attentions)

    def _norm(self, hidden: Tensor) -> Tensor:
        norm = self.model.layernorm
        normalised: Tensor = norm(hidden.to(norm.weight.dtype))
        return normalised

    def layers(self, image_size: int) -> list[Layer]:
        """FLOPs of `pool` for one grey image, the lowest layer first."""
        config = self.model.config
        patches = (image_size // self.patch) ** 2
        embedding = count_layer(self.embeddings, 2 * patches * self.patch**2 * self.width)
        matrices = 3 if config.use_swiglu_ffn else 2
        blocks = count_blocks(self.blocks, patches + 1, self.width, config.mlp_width, matrices)
        return [embedding, *blocks, count_layer(self.model.layernorm, has_norm=True)]

    def _embed(self, pixel_values: Tensor, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """(B, 3, S, S), or grey (B, 1, S, S) with `mean` and `std`, to tokens (B, 1 + P, W) of the stream's type."""
        embeddings = self.model.embeddings
        dtype = stream_dtype(embeddings.cls_token, self.own_blocks[-1].parts)
        projection = embeddings.patch_embeddings.projection
        weight, bias = projection.weight, projection.bias
        if pixel_values.shape[1] == 1 and mean is not None and std is not None:
            # each channel is a line of the first one: x_c = x_1 * s_1 / s_c + (m_1 - m_c) / s_c
            bias = bias + (weight * ((mean[:, :1] - mean) / std)).sum(dim=(1, 2, 3))
            weight = (weight * (std[:, :1] / std)).sum(dim=1, keepdim=True)
        pixels, cls = pixel_values.to(weight.dtype), embeddings.cls_token
        positions = self._positions(pixels.shape[2] // self.patch)
        # as for the stream, what is embedded is not rounded; patches are 1 % of the products
        is_exact = torch.is_inference_mode_enabled()
        with torch.autocast(pixels.device.type, enabled=False) if is_exact else nullcontext():
            if pixels.is_cuda:
                tokens = embed_by_product(pixels, weight, bias, cls, positions, dtype)
            else:
                patches = F.conv2d(pixels, weight, bias, stride=projection.stride).flatten(2).transpose(1, 2)
                tokens = torch.cat([cls.to(dtype).expand(len(patches), -1, -1), patches.to(dtype)], dim=1)
                tokens = tokens + positions.to(dtype)
        return torch.as_tensor(embeddings.dropout(tokens))

    def _positions(self, side: int) -> Tensor:
        """The position table (1, 1 + P, W) for `side` x `side` patches, as the library interpolates it.

        Bicubic interpolation is linear in the table, so it is two products with a constant matrix. They cost less than
        the library's interpolation, whose gradients a GPU also adds up in an order that changes from run to run.
        """
        table = self.model.embeddings.position_embeddings
        cls, patches = table[:, :1], table[0, 1:]
        trained = math.isqrt(len(patches))
        if side == trained:
            return table
        matrix = _bicubic(trained, side, table.device).to(table.dtype)
        grid = patches.unflatten(0, (trained, trained))
        with torch.autocast(table.device.type, enabled=False):
            resized = torch.einsum("ih,jw,hwd->ijd", matrix, matrix, grid)
        return torch.cat([cls, resized.flatten(0, 1).unsqueeze(0)], dim=1)


def embed_by_product(
    pixels: Tensor, weight: Tensor, bias: Tensor, cls: Tensor, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """CLS token (1, 1, W) and patches of (B, C, S, S) pixels, with the positions (1, 1 + N, W) added: (B, 1 + N, W).

    weight: (W, C, P, P). One matrix product over the patches and a patch of zeros, which becomes the CLS token. On a
    GPU cuDNN's convolution takes several times as long, most of it to rearrange its tensors.
    """
    patch = weight.shape[2]
    grid = pixels.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, rows, P, columns, P)
    patches = F.pad(grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), (0, 0, 1, 0))
    rest = positions + torch.cat([cls, bias.expand(1, patches.shape[1] - 1, -1)], dim=1)
    return F.linear(patches, weight.flatten(1)).to(dtype) + rest.to(dtype)


@lru_cache(maxsize=8)
def _bicubic(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old) weights with which `new` points are interpolated between `old` ones."""
    with torch.inference_mode(False), torch.no_grad():
        identity = torch.eye(old, device=device)[None, None]
        return F.interpolate(identity, size=(new, old), mode="bicubic", align_corners=False)[0, 0]
