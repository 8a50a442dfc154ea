"""The library's own models, which the towers here must equal."""

import torch
from transformers import Dinov2Config, Dinov2Model, PreTrainedModel, SiglipTextConfig, SiglipTextModel

from knee_siglip.encoders.tower import Tower

KINDS = {"dinov2": (Dinov2Config, Dinov2Model), "siglip_text_model": (SiglipTextConfig, SiglipTextModel)}


def new_library_tower(tower: Tower, attention: str = "sdpa") -> PreTrainedModel:
    """The library's encoder of the same sizes with random weights."""
    values = tower.config.to_dict()
    config_class, model_class = KINDS[values.pop("model_type")]
    return model_class(config_class(**values | {"attn_implementation": attention}))


def library_tower(tower: Tower, attention: str = "sdpa") -> PreTrainedModel:
    """The same encoder as transformers computes it: same weights, same type, same mode."""
    with torch.random.fork_rng(devices=[]):
        model = new_library_tower(tower, attention)
    model.load_state_dict(tower.state_dict())
    return model.to(tower.dtype).train(tower.training)
