"""Interfaces of a vision encoder and of a text encoder.

To add a family, derive a class from `VisionEncoder` or `TextEncoder` that wraps the family's transformers model, and
register it under its config's model type (`encoders/registry.py`). The wrapper holds no weights of its own, so a
checkpoint's weights keep transformers' names. The two families here (`OwnEncoder`) do without that library.
"""

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from knee_siglip.encoders.blocks import Block
from knee_siglip.encoders.flops import Layer
from knee_siglip.encoders.tower import Tower, TowerConfig
from knee_siglip.encoders.weights import NoDraws, missing_weights, read_config, read_weights

if TYPE_CHECKING:
    from knee_siglip.tables.tokenizer import Tokenizer


class Encoder(Protocol):
    """Either encoder.

    description: for error messages, such as "SigLIP model". config_class, model_class: of the library. load_options:
    keywords of its `from_pretrained`.
    """

    description: ClassVar[str]
    config_class: ClassVar[type[Any]]
    model_class: ClassVar[type[Any]]
    load_options: ClassVar[dict[str, Any]] = {}
    model: Any

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def config_of(cls, values: dict[str, Any]) -> Any:
        """A config from its `to_dict`."""
        return cls.config_class(**values)

    @classmethod
    def build(cls, config: Any) -> Any:
        """A model with random weights, without any parameter that `pool` does not use."""
        return cls.model_class(config)

    @classmethod
    def build_empty(cls, config: Any) -> Any:
        """A model whose weights will be assigned."""
        return cls.build(config)

    @classmethod
    def load(cls, folder: Path) -> tuple[Any, list[str]]:
        """The model in a folder as float32, and names of weights that are missing there."""
        options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True} | cls.load_options
        model, found = cls.model_class.from_pretrained(folder, output_loading_info=True, **options)
        return model, sorted(found["missing_keys"])

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
        """`tokens`, and each block's attention (B, H, 1 + P, 1 + P)."""
        implementation = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")  # fused attention keeps no weights
        try:
            output = self.model(pixel_values, output_attentions=True)
        finally:
            self.model.set_attn_implementation(implementation)
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

    def adopt_tokenizer(self, tokenizer: "Tokenizer") -> None:
        """Write the tokenizer's special tokens into the model's config."""
        self.model.config.eos_token_id = tokenizer.eos_token_id
        self.model.config.pad_token_id = tokenizer.pad_token_id

    @abstractmethod
    def pool(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L), padded to the whole position table, to (B, D)."""

    @abstractmethod
    def layers(self) -> list[Layer]:
        """FLOPs of `pool` for one text, the lowest layer first."""


class OwnEncoder(Encoder):
    """A family whose tower is this project's own."""

    config_class: ClassVar[type[TowerConfig]]
    model_class: ClassVar[type[Tower]]
    model: Tower

    @classmethod
    def config_of(cls, values: dict[str, Any]) -> TowerConfig:
        """Of the library's config too, of which more is passed over."""
        return cls.config_class.from_dict(values)

    @classmethod
    def build(cls, config: Any) -> Tower:
        """A tower with random weights, drawn as the library draws them."""
        tower = cls.model_class(config)
        cls(tower).draw_weights()
        return tower

    @classmethod
    def build_empty(cls, config: Any) -> Tower:
        """A tower whose weights will be assigned: none is drawn."""
        with NoDraws():
            return cls.model_class(config)

    @classmethod
    def load(cls, folder: Path) -> tuple[Tower, list[str]]:
        """The tower in a folder as float32, and names of weights that are missing there."""
        tower = cls.build_empty(cls.config_of(read_config(folder)))
        weights = cls.own_names(read_weights(folder))
        if missing := missing_weights(tower, weights):
            return tower, missing
        tower.load_state_dict({name: weights[name].float() for name in tower.state_dict()}, assign=True)
        return tower.eval(), []

    @property
    def own_blocks(self) -> list[Block]:
        """`blocks`, as what they are."""
        return cast(list[Block], list(self.blocks))

    @staticmethod
    @abstractmethod
    def own_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a published file by the tower's names; what it does not have may stay."""

    @abstractmethod
    def draw_weights(self) -> None:
        """Initialise from torch's global generator, in place."""
