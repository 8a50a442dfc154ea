"""Encoders from all three kinds of source, read by the same code that reads RAD-DINO and SigLIP."""

import hashlib
import json
import shutil
import time

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model, SiglipConfig, SiglipModel

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.encoders.backbones import (
    SENTENCEPIECE_TOKENIZER,
    SMALL_FOLDER,
    load_image_normalisation,
    load_text,
    load_vision,
    write_backbones,
    write_text,
    write_vision,
)
from knee_siglip.params.sections import ModelParams
from knee_siglip.tables.text import load_tokenizer, tokenize

HASH = "0123456789abcdef0123456789abcdef01234567"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def rad_dino(tmp_path_factory):
    """RAD-DINO's repository with a tiny width: 518 px, patch 14, mask token, its image processor."""
    folder = tmp_path_factory.mktemp("rad-dino")
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**TINY, image_size=518, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": 518},
        crop_size={"height": 518, "width": 518},
        image_mean=[0.5307] * 3,
        image_std=[0.2583] * 3,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """SigLIP's repository with a tiny width: both towers, CLIP's leftover token ids, tokenizer and processor files."""
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(1)
    text = {**TINY, "intermediate_size": 64, "vocab_size": len(load_tokenizer(SMALL_FOLDER / "text"))}
    vision = {**TINY, "intermediate_size": 64, "image_size": 224, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    for name in SENTENCEPIECE_TOKENIZER:
        shutil.copyfile(SMALL_FOLDER / "text" / name, folder / name)
    (folder / "tokenizer.json").write_text("{}")  # never read where the sentencepiece file lies beside it
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    return folder


def digest(folder):
    """Hash per file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_only_the_needed_parts_are_kept(rad_dino, siglip, tmp_path):
    write_backbones(ModelParams(vision=str(rad_dino), text=str(siglip)), tmp_path / "backbones")
    assert sorted(digest(tmp_path / "backbones")) == [
        "text/config.json",
        "text/model.safetensors",
        "text/special_tokens_map.json",
        "text/spiece.model",
        "text/tokenizer_config.json",
        "vision/config.json",
        "vision/model.safetensors",
        "vision/preprocessor_config.json",
    ]
    kept = load_file(tmp_path / "backbones/text/model.safetensors")
    assert not [name for name in kept if "vision" in name or "logit" in name]
    assert not [name for name in load_file(tmp_path / "backbones/vision/model.safetensors") if "mask" in name]
    assert [path.name for path in tmp_path.iterdir()] == ["backbones"]


def test_second_run_writes_the_same_bytes(rad_dino, siglip, tmp_path):
    params = ModelParams(vision=str(rad_dino), text=str(siglip))
    write_backbones(params, tmp_path / "backbones")
    first = digest(tmp_path / "backbones")
    write_backbones(params, tmp_path / "backbones")
    assert digest(tmp_path / "backbones") == first


def test_encoders_compute_what_their_sources_do(rad_dino, siglip, tmp_path):
    write_vision(rad_dino, tmp_path / "vision")
    write_text(siglip, tmp_path / "text")
    pixels = torch.rand(1, 3, 224, 224)
    input_ids = tokenize(load_tokenizer(tmp_path / "text"), ["Severe OA of right knee joint"], 64)
    with torch.inference_mode():
        vision = Dinov2Model.from_pretrained(rad_dino).eval()(pixels).last_hidden_state
        torch.testing.assert_close(load_vision(tmp_path / "vision").tokens(pixels), vision)
        text = SiglipModel.from_pretrained(siglip).eval().text_model(input_ids=input_ids).pooler_output
        torch.testing.assert_close(load_text(tmp_path / "text").pool(input_ids), text)


def test_published_token_ids_outside_the_vocabulary_are_mended(siglip, tmp_path):
    assert load_text(siglip).model.config.eos_token_id == 49407
    write_text(siglip, tmp_path / "text")
    config = load_text(tmp_path / "text").model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 1, 1)


def test_text_tower_alone_is_a_source_too(siglip, tmp_path):
    write_text(siglip, tmp_path / "once")
    write_text(tmp_path / "once", tmp_path / "twice")
    assert digest(tmp_path / "once") == digest(tmp_path / "twice")


@pytest.mark.parametrize("image_size", [224, 448])
def test_518_px_encoder_reads_other_sizes(rad_dino, image_size):
    with torch.inference_mode():
        tokens = load_vision(rad_dino).tokens(torch.rand(1, 3, image_size, image_size))
    assert tokens.shape == (1, (image_size // 14) ** 2 + 1, 32)


def test_half_precision_weights_become_float32(rad_dino, tmp_path):
    shutil.copytree(rad_dino, tmp_path / "half")
    weights = {name: tensor.half() for name, tensor in load_file(rad_dino / "model.safetensors").items()}
    save_file(weights, tmp_path / "half/model.safetensors", metadata={"format": "pt"})
    assert load_vision(tmp_path / "half").model.dtype == torch.float32


def test_normalisation_is_the_vision_encoders_own(rad_dino):
    assert load_image_normalisation(rad_dino) == ((0.5307,) * 3, (0.2583,) * 3)


def test_small_encoders_come_with_the_project(tmp_path):
    write_backbones(ModelParams(), tmp_path / "backbones")
    vision, text = load_vision(tmp_path / "backbones/vision"), load_text(tmp_path / "backbones/text")
    assert vision.patch == 28
    assert text.model.config.vocab_size == len(load_tokenizer(tmp_path / "backbones/text"))
    load_image_normalisation(tmp_path / "backbones/vision")


def test_small_text_weights_do_not_depend_on_the_seed_in_use(tmp_path):
    for seed in (1, 2):
        torch.manual_seed(seed)
        write_text(SMALL_FOLDER / "text", tmp_path / str(seed))
    assert torch.initial_seed() == 2
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("revision", ["", "main", HASH[:12], HASH.upper()])
def test_hub_name_needs_a_whole_commit_hash(tower, revision, tmp_path):
    params = ModelParams(**{tower: "owner/repository", f"{tower}_revision": revision})
    with pytest.raises(UsageError, match=rf"model\.{tower}_revision.*huggingface\.co/owner/repository/commits"):
        write_backbones(params, tmp_path / "backbones")


def test_source_that_is_neither_folder_nor_hub_name(tmp_path):
    with pytest.raises(UsageError, match=r"model\.vision = '\./missing/folder'"):
        write_backbones(ModelParams(vision="./missing/folder"), tmp_path / "backbones")


@pytest.fixture
def empty_hub_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def refused(tmp_path):
    params = ModelParams(text="google/siglip-base-patch16-224", text_revision=HASH)
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        write_backbones(params, tmp_path / "backbones")
    assert time.monotonic() - start < 20  # the download itself would retry for 30 s
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "backbones").exists()
    return str(caught.value)


def test_no_hub_is_one_sentence_at_once(empty_hub_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = refused(tmp_path)
    assert "google/siglip-base-patch16-224" in message
    assert HASH in message
    assert "model.text" in message
    assert "ConnectError" in message


def test_offline_mode_is_named_as_the_reason(empty_hub_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(tmp_path)


def test_commit_in_the_hub_cache_needs_no_hub(rad_dino, siglip, empty_hub_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    shutil.copytree(siglip, tmp_path / "hub/models--google--siglip/snapshots" / HASH)
    params = ModelParams(vision=str(rad_dino), text="google/siglip", text_revision=HASH)
    write_backbones(params, tmp_path / "backbones")
    assert load_text(tmp_path / "backbones/text").model.config.hidden_size == 32


def test_text_model_given_as_vision_encoder(siglip):
    with pytest.raises(UserError, match=r"type 'siglip'; model\.vision needs a Dinov2"):
        load_vision(siglip)


def test_vision_model_given_as_text_encoder(rad_dino):
    with pytest.raises(UserError, match=r"type 'dinov2'; model\.text needs a SigLIP"):
        load_text(rad_dino)


def test_folder_without_config(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        load_vision(tmp_path)


def test_folder_with_pickled_weights_only(rad_dino, tmp_path):
    shutil.copyfile(rad_dino / "config.json", tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="safetensors format only"):
        load_vision(tmp_path)


def test_damaged_weights(rad_dino, tmp_path):
    shutil.copytree(rad_dino, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="vision encoder cannot be loaded"):
        load_vision(tmp_path / "damaged")


def test_missing_weights_are_not_filled_with_random_ones(rad_dino, tmp_path):
    shutil.copytree(rad_dino, tmp_path / "partial")
    weights = load_file(rad_dino / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "partial/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights of the vision encoder are missing, first layernorm\.weight"):
        load_vision(tmp_path / "partial")


def test_tokenizer_larger_than_the_model_is_refused(siglip, tmp_path):
    source = tmp_path / "source"
    config = SiglipConfig.from_pretrained(siglip)
    config.text_config.vocab_size = 100
    SiglipModel(config).save_pretrained(source)
    for name in SENTENCEPIECE_TOKENIZER:
        shutil.copyfile(siglip / name, source / name)
    with pytest.raises(UserError, match="1536 tokens, the model only 100"):
        write_text(source, tmp_path / "text")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"image_std": [0.2] * 3}, "image_mean = None"),
        ({"image_mean": [0.5], "image_std": [0.2]}, "list of three"),
        ({"image_mean": [0.5] * 3, "image_std": [0.2, 0, 0.2]}, "above 0"),
    ],
)
def test_unusable_image_processor(values, problem, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=problem):
        load_image_normalisation(tmp_path)


def test_failed_run_leaves_the_earlier_encoders(rad_dino, siglip, tmp_path):
    write_backbones(ModelParams(vision=str(rad_dino), text=str(siglip)), tmp_path / "backbones")
    before = digest(tmp_path / "backbones")
    with pytest.raises(UserError):
        write_backbones(ModelParams(vision=str(rad_dino), text=str(rad_dino)), tmp_path / "backbones")
    assert digest(tmp_path / "backbones") == before
    assert [path.name for path in tmp_path.iterdir()] == ["backbones"]


def test_folder_without_tokenizer(siglip, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(siglip / name, source / name)
    with pytest.raises(UserError, match=r"source holds no tokenizer; spiece\.model"):
        write_text(source, tmp_path / "text")
