"""The projects that knee-siglip is measured against, as they are installed (`pip install -e '.[bench]'`).

To be imported before transformers, which imports torchvision wherever it is installed.
"""

import importlib
import importlib.util
from types import ModuleType

import torch

TORCHVISION_OPERATORS = ("nms", "qnms")


def open_clip(submodule: str = "") -> ModuleType:
    """`open_clip`, or a module of it or of `open_clip_train`; `ImportError` where it is not installed."""
    return importlib.import_module(submodule or "open_clip")


def _define_torchvisions_operators() -> None:
    """Torchvision's compiled part does not load beside every CPU build of torch; its Python part asks for two names.

    open_clip and transformers use neither of them: they take torchvision's image transforms.
    """
    if torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in TORCHVISION_OPERATORS:
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            _LIBRARY.define(name + signature)


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
_define_torchvisions_operators()
