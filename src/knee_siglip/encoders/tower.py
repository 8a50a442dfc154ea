"""A transformer tower and its config, with Hugging Face's names of weights and sizes, without its library.

`transformers` takes 2 to 3 seconds to import, which every command would wait for (docs/decisions.md).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import nn

from knee_siglip.encoders.blocks import Attention, Block

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@dataclass
class TowerConfig:
    """Sizes of a tower; the defaults are those of the library's config class.

    architecture: the library's class of the same model, so that it can read what is saved here.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What else a Hugging Face config holds is passed over."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict[str, Any]:
        """All of it, with the model type."""
        return asdict(self) | {"model_type": self.model_type}


class Group(nn.Module):
    """Layers under the names that they are given by."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """One of the layers."""


class Tower(nn.Module):
    """An encoder; its layers hold what torch draws for them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""
        return next(self.parameters()).dtype

    def set_attn_implementation(self, name: str) -> None:
        """`sdpa`, `flash_attention_2` or `eager`."""
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = name

    def activation_checkpointing_enable(self) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        for module in self.modules():
            if isinstance(module, Block):
                module.gradient_checkpointing = True

    def save_pretrained(self, folder: Path) -> None:
        """Write weights and config in Hugging Face format."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = str(self.dtype).removeprefix("torch.")
        config = self.config.to_dict() | {"architectures": [self.config.architecture], "dtype": dtype}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
