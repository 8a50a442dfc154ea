"""Interfaces of a vision encoder and of a text encoder.

To add a family, derive a class from `VisionEncoder` or `TextEncoder` that wraps the family's transformers model, and
register it under its config's model type (`encoders/registry.py`). The wrapper holds no weights of its own, so a
checkpoint's weights keep transformers' names.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from knee_siglip.encoders.flops import Layer
from knee_siglip.encoders.stream import BlockParts, follow_stream


class Encoder(Protocol):
    """Either encoder.

    description: for error messages, such as "SigLIP model". load_options: keywords of `from_pretrained`.
    drop_path_class: module that drops whole samples with its `drop_prob`; a block calls its one after the attention and
    after the MLP.
    """

    description: ClassVar[str]
    config_class: ClassVar[type[PretrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]
    load_options: ClassVar[dict[str, Any]] = {}
    drop_path_class: ClassVar[type[nn.Module] | None] = None
    model: Any

    @staticmethod
    def parts(block: Any) -> BlockParts | None:
        """The layers of a block that may compute with a bf16 stream; None leaves the family to autocast."""
        del block
        return None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @classmethod
    def build(cls, config: PretrainedConfig) -> PreTrainedModel:
        """A model with random weights, without any parameter that `pool` does not use."""
        model = cls.model_class(config)
        for block in cls(model).blocks:
            follow_stream(block, cls.parts)
        return model

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks, the lowest first."""

    @property
    def embeddings(self) -> nn.Module:
        """What comes before the blocks."""
        embeddings: nn.Module = self.model.embeddings
        return embeddings

    @property
    def width(self) -> int:
        """Length of a pooled vector."""
        return int(self.model.config.hidden_size)

    @abstractmethod
    def attention_dropout(self, module: nn.Module) -> float:
        """Probability with which `module` drops attention weights; 0 where it is no attention or drops none."""

    def depths(self) -> dict[str, int]:
        """Depth of each parameter: 0 the embeddings, 1 to L the blocks, L + 1 what follows them."""
        found = {id(parameter): 0 for parameter in self.embeddings.parameters()}
        for number, block in enumerate(self.blocks, start=1):
            found |= {id(parameter): number for parameter in block.parameters()}
        last = len(self.blocks) + 1
        return {name: found.get(id(parameter), last) for name, parameter in self.model.named_parameters()}


class VisionEncoder(Encoder, Protocol):
    """Images to vectors of `width`. Pixel values are normalised: (B, 3, S, S), or grey (B, 1, S, S) for `pool`."""

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return int(self.model.config.patch_size)

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        return int(self.model.config.num_attention_heads)

    def pool(self, pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """The CLS token (B, W) after the last norm.

        pixel_values: of three channels, or grey, normalised with the first channel's mean and std. mean, std:
        (1, 3, 1, 1) of the three channels.
        """
        if pixel_values.shape[1] == 1:
            pixel_values = (pixel_values * std[:, :1] + mean[:, :1] - mean) / std
        return self.tokens(pixel_values)[:, 0]

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """CLS token, then patches row by row, after the last norm: (B, 1 + P, W)."""
        found: Tensor = self.model(pixel_values).last_hidden_state
        return found

    def tokens_and_attentions(self, pixel_values: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`tokens`, and each block's attention (B, H, 1 + P, 1 + P), of the eager implementation only."""
        output = self.model(pixel_values, output_attentions=True)
        return output.last_hidden_state, output.attentions

    @abstractmethod
    def layers(self, image_size: int) -> list[Layer]:
        """FLOPs of `pool` for one grey image of `image_size` pixels a side, the lowest layer first."""


class TextEncoder(Encoder, Protocol):
    """Texts to vectors of `width`, the width of the space that both encoders share."""

    @property
    def positions(self) -> int:
        """Length of the position table in tokens; every text is padded to it."""
        return int(self.model.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Number of tokens it knows."""
        return int(self.model.config.vocab_size)

    @abstractmethod
    def extend_positions(self, length: int) -> None:
        """Make room for `length` tokens, in place; a table that is long enough stays as it is."""

    def adopt_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the tokenizer's special tokens into the model's config."""
        self.model.config.eos_token_id = tokenizer.eos_token_id
        self.model.config.pad_token_id = tokenizer.pad_token_id

    @abstractmethod
    def pool(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L), padded to the whole position table, to (B, D)."""

    @abstractmethod
    def layers(self) -> list[Layer]:
        """FLOPs of `pool` for one text, the lowest layer first."""
