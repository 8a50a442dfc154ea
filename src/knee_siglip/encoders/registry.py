"""Which class wraps which encoder: found by the `model_type` in an encoder's config."""

from typing import Literal

from knee_siglip.encoders.dinov2 import Dinov2Encoder
from knee_siglip.encoders.protocols import TextEncoder, VisionEncoder
from knee_siglip.encoders.siglip_text import SiglipTextEncoder

Tower = Literal["vision", "text"]

VISION_ENCODERS: dict[str, type[VisionEncoder]] = {"dinov2": Dinov2Encoder}
TEXT_ENCODERS: dict[str, type[TextEncoder]] = {"siglip_text_model": SiglipTextEncoder, "siglip": SiglipTextEncoder}
"""A config without a model type means the first of each."""


def encoders_of(tower: Tower) -> dict[str, type[VisionEncoder]] | dict[str, type[TextEncoder]]:
    """All families of one tower, by model type."""
    return VISION_ENCODERS if tower == "vision" else TEXT_ENCODERS
