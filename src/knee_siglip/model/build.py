"""A new model from the two encoders on disk."""

import math
from pathlib import Path

from knee_siglip.encoders.backbones import load_image_normalisation, load_text, load_vision
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.params.sections import ModelParams
from knee_siglip.tables.text import load_tokenizer
from knee_siglip.tables.tokenizer import Tokenizer


def build_model(
    backbones: Path, params: ModelParams, contrastive_batch: int
) -> tuple[KneeRadDinoSigLIPModel, Tokenizer]:
    """Join the encoders of `backbones/{vision,text}`; what joins them is drawn from torch's global seed.

    Args:
        contrastive_batch: images whose pairs meet in one loss; sets `bias_init: auto` to -log(B - 1), at which a start
            without knowledge predicts each pair with its prior probability 1/B.

    Raises:
        UserError: a folder is missing or holds another kind of model.
    """
    vision, text = load_vision(backbones / "vision"), load_text(backbones / "text")
    assert params.max_text_length != "auto", "choose_text_length comes first"
    text.extend_positions(params.max_text_length)
    mean, std = load_image_normalisation(backbones / "vision")
    config = KneeRadDinoSigLIPConfig(
        vision_config=vision.model.config,
        text_config=text.model.config,
        projection=params.projection,
        initial_temperature=params.temperature,
        bias_init=-math.log(max(contrastive_batch - 1, 1)) if params.bias_init == "auto" else params.bias_init,
        image_mean=mean,
        image_std=std,
    )
    model = KneeRadDinoSigLIPModel(config)
    model.vision_model.load_state_dict(vision.model.state_dict())
    model.text_model.load_state_dict(text.model.state_dict())
    return model, load_tokenizer(backbones / "text")
