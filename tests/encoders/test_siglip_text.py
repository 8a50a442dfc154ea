"""A longer text table keeps what the encoder knows about short texts and about the pooled position."""

import pytest
import torch
from transformers import SiglipTextModel

from knee_siglip.encoders.siglip_text import WELL_TRAINED, SiglipTextConfig, SiglipTextEncoder


@pytest.fixture
def text_model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipTextConfig(vocab_size=40, bos_token_id=None, eos_token_id=1, **sizes)
    return SiglipTextEncoder.build(config).eval()


def table(model):
    return model.embeddings.position_embedding.weight.detach().clone()


def test_first_positions_and_the_pooled_one_are_kept(text_model):
    old = table(text_model)
    SiglipTextEncoder(text_model).extend_positions(512)
    new = table(text_model)
    assert new.shape == (512, 16)
    assert torch.equal(new[: WELL_TRAINED + 1], old[: WELL_TRAINED + 1])
    assert torch.equal(new[-1], old[-1])


def test_positions_between_are_interpolated(text_model):
    line = torch.arange(64.0).unsqueeze(1).expand(64, 16)
    text_model.embeddings.position_embedding.weight.data.copy_(line)
    SiglipTextEncoder(text_model).extend_positions(100)
    places = table(text_model)[:, 0]
    steps = places[WELL_TRAINED:].diff()
    assert torch.allclose(steps, torch.full_like(steps, (63 - 20) / (99 - 20)), atol=1e-4)


@pytest.mark.parametrize("length", [8, 64])
def test_table_that_is_long_enough_stays(text_model, length):
    old = table(text_model)
    SiglipTextEncoder(text_model).extend_positions(length)
    assert torch.equal(table(text_model), old)
    assert text_model.config.max_position_embeddings == 64


def test_extended_model_reads_long_texts_and_survives_saving(text_model, tmp_path):
    input_ids = torch.randint(2, 40, (2, 65))
    encoder = SiglipTextEncoder(text_model)
    with pytest.raises(RuntimeError, match="size of tensor"):
        encoder.pool(input_ids)
    encoder.extend_positions(65)
    expected = encoder.pool(input_ids)
    text_model.save_pretrained(tmp_path)
    again, missing = SiglipTextEncoder.load(tmp_path)
    assert not missing
    assert again.config.max_position_embeddings == 65
    assert torch.equal(SiglipTextEncoder(again).pool(input_ids), expected)
    library = SiglipTextModel.from_pretrained(tmp_path).eval()  # the library reads it too
    torch.testing.assert_close(library(input_ids=input_ids).pooler_output, expected)


def test_frozen_table_stays_frozen_and_half_precision_stays_half(text_model):
    text_model.half().requires_grad_(False)
    SiglipTextEncoder(text_model).extend_positions(80)
    weight = text_model.embeddings.position_embedding.weight
    assert weight.dtype == torch.float16
    assert not weight.requires_grad
    assert len(weight) == 80


def test_every_length_ends_on_the_old_last_position(text_model):
    old = table(text_model)
    for length in range(65, 200, 7):
        SiglipTextEncoder(text_model).extend_positions(length)
        assert torch.equal(table(text_model)[-1], old[-1])
