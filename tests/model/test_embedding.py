"""Embedding: the vision tower in fp16, bf16 or float32, the rest always in float32, and batches that do not fit."""

import copy
import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.encoders.backbones import write_backbones
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.inference.predictor import Predictor
from knee_siglip.model import device
from knee_siglip.model.build import build_model
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint
from knee_siglip.model.device import embedding_dtype, images_at_once
from knee_siglip.model.embedding import embed_pixels, embed_texts
from knee_siglip.params.sections import Params
from knee_siglip.sample.findings import draw_labels
from knee_siglip.sample.radiograph import draw_knee
from toy_checkpoint import checkpoint_path  # noqa: F401

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HALVES = [torch.float16, torch.bfloat16]
TEXTS = ["Normal left knee joint.", "Severe OA of medial compartment of right knee joint.", "Joint effusion."]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The encoders that ship with the project."""
    backbones = tmp_path_factory.mktemp("backbones")
    write_backbones(Params().model, backbones)
    torch.manual_seed(0)
    model, tokenizer = build_model(backbones, Params().model, contrastive_batch=64)
    return Checkpoint(model.eval(), tokenizer, Transform(224, "pad", "local"), Params().to_dict())


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(6, 224, 224): drawn knees."""
    rng = np.random.default_rng(0)
    transform = Transform(224, "pad", "local")
    return np.stack([transform(draw_knee(rng, draw_labels(rng, "left"), 256)[0]) for _ in range(6)])


def rounded(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    return dataclasses.replace(checkpoint, vision_dtype=dtype)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_embeddings_in_half_precision_lie_near_those_of_float32(checkpoint, pixels, dtype, limit):
    exact, half = embed_pixels(checkpoint, [pixels]), embed_pixels(rounded(checkpoint, dtype), [pixels])
    assert half.dtype == np.float32
    assert np.abs(np.linalg.norm(half, axis=1) - 1).max() < 1e-6
    assert np.linalg.norm(half - exact, axis=1).max() < limit
    assert np.abs(half @ exact.T - exact @ exact.T).max() < limit
    assert not np.array_equal(half, exact)


@pytest.mark.parametrize("dtype", HALVES)
def test_texts_and_the_patches_of_images_are_not_rounded(checkpoint, pixels, dtype):
    np.testing.assert_array_equal(embed_texts(rounded(checkpoint, dtype), TEXTS), embed_texts(checkpoint, TEXTS))
    inputs = []
    block = checkpoint.model.vision.blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    for one in (checkpoint, rounded(checkpoint, dtype)):
        embed_pixels(one, [pixels])
    block.remove()
    assert torch.equal(*inputs)


def test_what_overflows_in_fp16_is_computed_again_in_float32_and_told_once(checkpoint, pixels, caplog):
    device._warn_overflow.cache_clear()
    model = copy.deepcopy(checkpoint.model)
    with torch.no_grad():
        model.vision.blocks[0].mlp.fc1.weight *= 1e6
    large = dataclasses.replace(checkpoint, model=model)
    exact, half = embed_pixels(large, [pixels]), embed_pixels(rounded(large, torch.float16), [pixels, pixels])
    np.testing.assert_array_equal(half, np.concatenate([exact, exact]))
    assert [message for message in caplog.messages if "overflows in fp16" in message] == caplog.messages
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("dtype", HALVES)
def test_the_residual_stream_and_the_heads_stay_in_float32(checkpoint, pixels, dtype):
    seen = []

    def note(_: object, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        seen.append((given[0].dtype, out.dtype))

    heads = (checkpoint.model.visual_projection, checkpoint.model.text_model.head)
    hooks = [head.register_forward_hook(note) for head in heads]
    block = checkpoint.model.vision.blocks[0].register_forward_hook(lambda _, __, out: seen.append(out[0].dtype))
    embed_pixels(rounded(checkpoint, dtype), [pixels[:1]])
    embed_texts(rounded(checkpoint, dtype), TEXTS)
    for hook in (*hooks, block):
        hook.remove()
    assert seen == [torch.float32, (torch.float32, torch.float32), (torch.float32, torch.float32)]


def test_a_batch_that_does_not_fit_is_embedded_in_parts(checkpoint, pixels, caplog, monkeypatch):
    whole = embed_pixels(checkpoint, [pixels, pixels[:2]])
    sizes = room_for(2, checkpoint, monkeypatch)
    with caplog.at_level(logging.WARNING):
        parts = embed_pixels(checkpoint, [pixels, pixels[:2]])
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert sizes == [6, 3, 2, 2, 2, 2]
    assert caplog.messages == [
        "cpu ran out of memory with 6 images; now 3 at a time",
        "cpu ran out of memory with 3 images; now 2 at a time",
    ]


def test_one_image_that_does_not_fit_is_an_error(checkpoint, pixels, monkeypatch):
    room_for(0, checkpoint, monkeypatch)
    with pytest.raises(UserError, match="cpu ran out of memory: not even one of the images fits"):
        embed_pixels(checkpoint, [pixels])


def room_for(images: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Memory for so many images at once; returns the batch sizes that were tried."""
    sizes: list[int] = []
    encode = checkpoint.model.get_image_features

    def limited(values: torch.Tensor) -> torch.Tensor:
        sizes.append(len(values))
        if len(values) > images:
            raise torch.OutOfMemoryError
        return encode(values)

    monkeypatch.setattr(checkpoint.model, "get_image_features", limited)
    return sizes


def test_auto_is_float32_on_a_cpu_and_fp16_on_a_gpu_that_is_fast_in_it(monkeypatch):
    assert embedding_dtype("auto", CPU) is None
    for capability, dtype in (((6, 1), None), ((7, 0), torch.float16), ((9, 0), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        assert embedding_dtype("auto", CUDA) is dtype
    assert embedding_dtype("float32", CUDA) is None
    assert images_at_once(CUDA) > images_at_once(CPU)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", None), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("float32", None)],
)
def test_the_predictor_computes_as_asked(checkpoint_path: Path, precision, dtype):  # noqa: F811
    assert Predictor(checkpoint_path, device="cpu", precision=precision).checkpoint.vision_dtype is dtype


def test_another_precision_is_refused(checkpoint_path: Path):  # noqa: F811
    with pytest.raises(UsageError, match="precision = 'fp8': must be auto, fp16, bf16 or float32"):
        load_checkpoint(checkpoint_path, "cpu", "fp8")
