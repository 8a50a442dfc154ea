"""A whole checkpoint in a file: a toy model with random weights, a tokenizer of a few words, and a transform."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint, save_checkpoint
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params.files import parse_params

WORDS = ("normal", "severe", "moderate", "mild", "osteoarthritis", "of", "knee", "joint", "effusion")


@pytest.fixture
def checkpoint_path(make_model: Callable[..., KneeRadDinoSigLIPModel], tmp_path: Path) -> Path:
    """A real checkpoint with random weights in an empty folder."""
    return write_checkpoint(make_model(), tmp_path / "alone" / "best_model.pt")


def write_checkpoint(model: KneeRadDinoSigLIPModel, path: Path) -> Path:
    """Write a toy model's checkpoint; returns its path."""
    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]", model_max_length=8
    )
    params = parse_params({"image_size": 28, "model": {"max_text_length": 8}})
    save_checkpoint(Checkpoint(model, tokenizer, Transform(28, "pad", "local"), params.to_dict()), path)
    return path
