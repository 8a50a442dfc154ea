"""Config and weights of a folder in Hugging Face format."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from knee_siglip.encoders.tower import CONFIG, INDEX, WEIGHTS

DRAWS = ("uniform_", "normal_")


class NoDraws(TorchFunctionMode):
    """Layers made within it hold whatever was in memory: their weights are assigned afterwards.

    Not the device `meta`: making layers there imports torch._dynamo and sympy, two seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_config(folder: Path) -> dict[str, Any]:
    """Config of an encoder, or that of the text part of a whole image-text model."""
    values: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = values.get("text_config", values)
    assert isinstance(found, dict), f"text_config of {CONFIG} is no object"
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder by their names in the file, or in the files that its index names."""
    if not (folder / INDEX).is_file():
        return load_file(folder / WEIGHTS)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    weights: dict[str, Tensor] = {}
    for name in sorted(set(index["weight_map"].values())):
        weights |= load_file(folder / Path(name).name)
    return weights


def missing_weights(tower: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Names of a tower's weights that are not there.

    Raises:
        ValueError: one has another shape.
    """
    own = tower.state_dict()
    for name in own.keys() & weights.keys():
        if weights[name].shape != own[name].shape:
            raise ValueError(f"{name} has shape {tuple(weights[name].shape)} for {tuple(own[name].shape)}")
    return sorted(own.keys() - weights.keys())
