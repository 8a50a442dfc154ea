"""Another family of encoders is one small class: a ViT and a BERT, from their folders to a training step."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ViTConfig, ViTModel

from knee_siglip.core.errors import UserError
from knee_siglip.encoders.backbones import write_backbones
from knee_siglip.encoders.flops import count_blocks, count_layer
from knee_siglip.encoders.protocols import TextEncoder, VisionEncoder
from knee_siglip.encoders.registry import TEXT_ENCODERS, VISION_ENCODERS
from knee_siglip.explain.maps import METHODS, phrase_maps
from knee_siglip.model.build import build_model
from knee_siglip.pairs.batches import PairDataset
from knee_siglip.params.sections import FreezeParams, ModelParams, TrainParams
from knee_siglip.tables.text import tokenize
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.trainer import Trainer
from toys import ArrayPixels

WORDS = ["<pad>", "<unk>", "osteophytes", "narrowing", "no", "severe", "mild", "knee"]
TEXTS = ["severe narrowing", "mild osteophytes knee", "no osteophytes"]
TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


class ViTEncoder(VisionEncoder):
    description = "ViT model"
    config_class = ViTConfig
    model_class = ViTModel
    load_options: ClassVar = {"add_pooling_layer": False}

    @classmethod
    def build(cls, config):
        return ViTModel(config, add_pooling_layer=False)

    @property
    def blocks(self):
        return self.model.layers

    def layers(self, image_size):
        patches = (image_size // self.patch) ** 2
        embedding = count_layer(self.embeddings, 2 * patches * self.patch**2 * self.width)
        blocks = count_blocks(self.blocks, patches + 1, self.width, self.model.config.intermediate_size)
        return [embedding, *blocks, count_layer(self.model.layernorm, has_norm=True)]


class BertEncoder(TextEncoder):
    description = "BERT model"
    config_class = BertConfig
    model_class = BertModel
    load_options: ClassVar = {"add_pooling_layer": False}

    @classmethod
    def build(cls, config):
        return BertModel(config, add_pooling_layer=False)

    @property
    def blocks(self):
        return self.model.encoder.layer

    def extend_positions(self, length):
        assert length <= self.positions

    def pool(self, input_ids):
        mask = input_ids != self.model.config.pad_token_id
        return self.model(input_ids, attention_mask=mask.long()).last_hidden_state[:, 0]

    def layers(self):
        config = self.model.config
        return [count_layer(self.embeddings), *count_blocks(self.blocks, 8, self.width, config.intermediate_size)]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A ViT of width 16 and a BERT of width 24, registered, in Hugging Face format."""
    monkeypatch.setitem(VISION_ENCODERS, "vit", ViTEncoder)
    monkeypatch.setitem(TEXT_ENCODERS, "bert", BertEncoder)
    torch.manual_seed(0)
    vision, text = tmp_path / "vit", tmp_path / "bert"
    ViTModel(ViTConfig(**TINY, hidden_size=16, image_size=28, patch_size=14)).save_pretrained(vision)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.4]}
    (vision / "preprocessor_config.json").write_text(json.dumps(processor))
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 8}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(**TINY, hidden_size=24, **sizes, **no_dropout)).save_pretrained(text)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(text)
    return ModelParams(vision=str(vision), text=str(text), max_text_length=8)


@pytest.fixture
def built(folders, tmp_path):
    write_backbones(folders, tmp_path / "backbones")
    return build_model(tmp_path / "backbones", folders, contrastive_batch=6)


def pairs_of(tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    input_ids = tokenize(tokenizer, TEXTS, 8)
    return PairDataset(ArrayPixels(pixels), np.arange(12), input_ids, np.arange(12) % 3)


def test_a_step_trains_every_parameter_of_both(built):
    model, tokenizer = built
    pairs = pairs_of(tokenizer)
    assert (model.vision.width, model.text.width, model.vision.patch) == (16, 24, 14)
    params = TrainParams(batch_size=6, micro_batch_size=4, epochs=1, learning_rate=1e-3)
    trainer = Trainer(
        model,
        pairs,
        pairs,
        params,
        seed=0,
        device=torch.device("cpu"),
        log=lambda values, step: None,
        on_best=lambda metrics: None,
        guard=FiniteGuard(0, None, lambda rows: []),
    )
    trainer.encoder.train()
    trainer.train_step(pairs.batch(np.arange(6)), np.arange(6))
    for name, parameter in model.named_parameters():
        assert trainer.optimizer.state[parameter]["exp_avg"].any(), name
    embeds = [*model.eval().get_image_features(model.normalise_grey(torch.ones(2, 28, 28))).detach()]
    embeds += model.get_text_features(pairs.input_ids.long()).detach()
    for embed in embeds:
        assert embed.norm().item() == pytest.approx(1, abs=1e-5)


def test_blocks_are_frozen_from_below(built):
    model, _ = built
    freeze_towers(model, FreezeParams(vision=1, text=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "vision_model.layers.1.mlp.fc1.weight" in trained
    assert "vision_model.layers.0.mlp.fc1.weight" not in trained
    assert "text_model.encoder.layer.1.output.dense.weight" in trained
    assert not any(name.startswith(("vision_model.embeddings", "text_model.embeddings")) for name in trained)


@pytest.mark.parametrize("method", METHODS)
def test_phrases_are_found_in_its_images(built, method):
    model = built[0].eval()
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 28, 28), dtype=np.uint8))
    phrase = nn.functional.normalize(torch.ones(1, 24), dim=-1)
    maps = phrase_maps(model, pixels, [phrase, phrase], method)
    assert torch.stack(maps).shape == (2, 1, 2, 2)
    assert torch.stack(maps).isfinite().all()


def test_its_channels_are_normalised_each_by_its_own_mean_and_std(built):
    model = built[0].double().eval()
    pixels = torch.randint(0, 256, (2, 28, 28), generator=torch.Generator().manual_seed(0))
    coloured = model.vision_features(model.normalise_pixels(pixels))
    torch.testing.assert_close(model.vision_features(model.normalise_grey(pixels)), coloured, rtol=1e-5, atol=1e-6)


def test_an_unregistered_family_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.delitem(VISION_ENCODERS, "vit")
    with pytest.raises(UserError, match=r"type 'vit'; model\.vision needs a Dinov2 model"):
        write_backbones(folders, tmp_path / "backbones")
