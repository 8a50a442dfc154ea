"""Writes both encoders to disk in Hugging Face format, and loads them.

A source is `small` (ships with the project), a local folder, or a hub repository at a pinned commit. Only what the
model needs is kept: the vision encoder's weights and image processor config, the text encoder's weights and tokenizer.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_folder
from knee_siglip.encoders.protocols import Encoder, TextEncoder, VisionEncoder
from knee_siglip.encoders.registry import TEXT_ENCODERS, VISION_ENCODERS, Tower, encoders_of
from knee_siglip.encoders.tower import CONFIG, INDEX, WEIGHTS
from knee_siglip.encoders.weights import read_config
from knee_siglip.params.checks import check_encoder
from knee_siglip.params.sections import SMALL, ModelParams
from knee_siglip.tables.text import SENTENCEPIECE_FILE, load_tokenizer

SMALL_FOLDER = Path(__file__).with_name("small")
SMALL_TEXT_SEED = 0
"""The small text encoder ships without weights: it learns its few words with the task, initialised from this seed."""

PROCESSOR = "preprocessor_config.json"
SENTENCEPIECE_TOKENIZER = (SENTENCEPIECE_FILE, "tokenizer_config.json", "special_tokens_map.json")
FAST_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

WANTED: dict[Tower, tuple[str, ...]] = {
    "vision": (CONFIG, PROCESSOR, "model*.safetensors", INDEX),
    "text": (CONFIG, "model*.safetensors", INDEX, *SENTENCEPIECE_TOKENIZER, "tokenizer.json"),
}


def write_backbones(params: ModelParams, target: Path) -> None:
    """Write both encoders to `target/{vision,text}`, atomically; the same params write the same bytes.

    Raises:
        UsageError: a source that is no folder and no hub name, or a revision that is no commit hash.
        UserError: the hub cannot be reached, or a source does not hold what is needed.
    """
    check_encoder("vision", params.vision, params.vision_revision)
    check_encoder("text", params.text, params.text_revision)
    vision = _find_source("vision", params.vision, params.vision_revision)
    text = _find_source("text", params.text, params.text_revision)
    with atomic_folder(target) as folder:
        write_vision(vision, folder / "vision")
        write_text(text, folder / "text")


def _find_source(tower: Tower, source: str, revision: str) -> Path:
    if source == SMALL:
        return SMALL_FOLDER / tower
    if Path(source).is_dir():
        return Path(source)
    from knee_siglip.encoders.hub import download  # the hub's client takes half a second to import

    return download(tower, source, revision, WANTED[tower])


def write_vision(source: Path, target: Path) -> None:
    """Keep a folder's vision encoder (float32) and its image processor's config."""
    model = load_vision(source).model
    load_image_normalisation(source)
    target.mkdir(parents=True)
    with _quiet():
        model.save_pretrained(target)
    shutil.copyfile(source / PROCESSOR, target / PROCESSOR)


def write_text(source: Path, target: Path) -> None:
    """Keep a folder's text encoder (float32) and its tokenizer; the shipped encoder is initialised here."""
    encoder = _new_small_text() if source == SMALL_FOLDER / "text" else load_text(source)
    vocabulary = encoder.model.config.vocab_size
    target.mkdir(parents=True)
    _copy_tokenizer(source, target)
    tokenizer = load_tokenizer(target)
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}; "
            "they do not belong together"
        )
    encoder.adopt_tokenizer(tokenizer)
    with _quiet():
        encoder.model.save_pretrained(target)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy one tokenizer, not two that may differ: SigLIP's own sentencepiece wins over a tokenizer.json beside it."""
    for names in (SENTENCEPIECE_TOKENIZER, FAST_TOKENIZER):
        if (source / names[0]).is_file():
            for name in names:
                if (source / name).is_file():
                    shutil.copyfile(source / name, target / name)
            return
    raise UserError(f"{source} holds no tokenizer; {SENTENCEPIECE_FILE} of the SigLIP repository is needed")


def load_vision(folder: Path) -> VisionEncoder:
    """Read a vision encoder as float32.

    Raises:
        UserError: `folder` holds no encoder of a registered family, or not all of its weights.
    """
    kind = VISION_ENCODERS[_model_type(folder, "vision")]
    return kind(_load(kind, "vision", folder))


def load_text(folder: Path) -> TextEncoder:
    """Read a text encoder as float32, from a whole image-text model or from a text model alone.

    Raises:
        UserError: `folder` holds no encoder of a registered family, or not all of its text weights.
    """
    kind = TEXT_ENCODERS[_model_type(folder, "text")]
    return kind(_load(kind, "text", folder))


def load_image_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (3 each), on the 0-1 scale, of a vision encoder's own image processor.

    Raises:
        UserError: the file is missing or has no three usable values.
    """
    path = folder / PROCESSOR
    processor = _read_json(path, "the vision encoder's own mean and standard deviation come from this file")
    mean = _three_numbers(path, "image_mean", processor.get("image_mean"))
    std = _three_numbers(path, "image_std", processor.get("image_std"))
    if min(std) <= 0:
        raise UserError(f"{path}: image_std = {std!r}: must be above 0")
    return mean, std


def _three_numbers(path: Path, key: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise UserError(f"{path}: {key} = {values!r}: must be a list of three numbers")
    return tuple(map(float, values))


def _new_small_text() -> TextEncoder:
    """Initialised as its family is, independently of torch's global generator and without advancing it."""
    folder = SMALL_FOLDER / "text"
    kind = TEXT_ENCODERS[_model_type(folder, "text")]
    config = kind.config_of(read_config(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SMALL_TEXT_SEED)
        return kind(kind.build(config))


def _model_type(folder: Path, tower: Tower) -> str:
    known = encoders_of(tower)
    needed = " or ".join(dict.fromkeys(kind.description for kind in known.values()))
    found = _read_json(folder / CONFIG, f"a {needed} in Hugging Face format is needed").get("model_type")
    if found not in known:
        raise UserError(f"{folder} holds a model of type {found!r}; model.{tower} needs a {needed}")
    return str(found)


def _load(kind: type[Encoder], tower: Tower, folder: Path) -> Any:
    """Missing weights, which would stay random, are an error."""
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise UserError(f"{folder} holds no {WEIGHTS}; weights are read in safetensors format only")
    try:
        with _quiet():
            model, missing = kind.load(folder)
    # safetensors raises a class of its own for a damaged file, the library several for shapes that do not fit
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder}: the {tower} encoder cannot be loaded: {reason}") from None
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights of the {tower} encoder are missing, first {missing[0]}")
    return model


def _read_json(path: Path, why: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; {why}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(content).__name__}")
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bars and load report; a family that does not need the library does not load it."""
    if "transformers" not in sys.modules:
        yield
        return
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
