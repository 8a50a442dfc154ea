"""Match knee radiographs with radiology impressions: RAD-DINO image encoder, SigLIP text encoder, sigmoid loss."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from knee_siglip.core.threads import set_up_threads

if TYPE_CHECKING:
    from knee_siglip.serve.model import load

    __version__: str

__all__ = ["__version__", "load"]

set_up_threads()


def __getattr__(name: str) -> Any:
    """Resolve `load` and `__version__` when they are used.

    Importing the package costs no import of torch, and a release that changes the version reruns no stage.
    """
    if name == "__version__":
        return version("knee-siglip")
    if name == "load":
        return import_module("knee_siglip.serve.model").load
    raise AttributeError(f"module 'knee_siglip' has no attribute {name!r}")
