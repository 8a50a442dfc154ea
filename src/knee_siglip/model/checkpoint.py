"""One self-contained file per model: weights, configs, tokenizer, image transform, params, metrics, versions.

Loads with `torch.load(weights_only=True)`: it holds plain containers and tensors, and no code.
"""

import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import knee_siglip
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.device import embedding_dtype, place
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.model.training_facts import Likeness, TrainingFacts
from knee_siglip.params.sections import LARGEST_IMAGE, PreprocessParams
from knee_siglip.tables.text import load_tokenizer
from knee_siglip.tables.tokenizer import Tokenizer

FORMAT = "knee-siglip/1"

PARTS: dict[str, type] = {
    **dict.fromkeys(("config", "weights", "tokenizer", "transform", "params", "metrics", "versions"), dict),
    "data_hash": str,
}
FACTS, LIKENESS = "training_facts", "likeness"
"""Parts that older checkpoints, and those of an unfinished training, have not."""


@dataclass
class Checkpoint:
    """A trained model with all that inference needs; `metrics` are those of the epoch it was saved at.

    facts, likeness: None where its training has not ended, or they could not be found.
    vision_dtype: autocast type in which its vision tower embeds; None is the weights' own. It is not saved.
    """

    model: KneeRadDinoSigLIPModel
    tokenizer: Tokenizer
    transform: Transform
    params: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    data_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    facts: TrainingFacts | None = None
    likeness: Likeness | None = None
    vision_dtype: torch.dtype | None = None

    @property
    def image_size(self) -> int:
        """Side in pixels of the images it was trained on."""
        return self.transform.image_size

    @property
    def max_text_length(self) -> int:
        """Tokens after which a text is truncated."""
        return int(self.params["model"]["max_text_length"])

    @property
    def position_count(self) -> int:
        """Length of the text position table, which every input is padded to."""
        return self.model.text.positions


def save_checkpoint(checkpoint: Checkpoint, path: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the file atomically.

    weights: stored in place of the model's own, by the names of a model without adapters.
    """
    weights = checkpoint.model.state_dict() if weights is None else weights
    content = {
        "format": FORMAT,
        "config": checkpoint.model.config.to_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in weights.items()},
        "tokenizer": _pack_tokenizer(checkpoint.tokenizer),
        "transform": checkpoint.transform.to_dict(),
        "params": checkpoint.params,
        "metrics": checkpoint.metrics,
        "data_hash": checkpoint.data_hash,
        "versions": {
            "knee-siglip": knee_siglip.__version__,
            "torch": str(torch.__version__),
        },
    }
    if checkpoint.facts is not None:
        content[FACTS] = checkpoint.facts.model_dump()
    if checkpoint.likeness is not None:
        content[LIKENESS] = checkpoint.likeness.to_dict()
    with atomic_file(path) as file:
        torch.save(content, file)


def load_checkpoint(path: Path, device: str | torch.device = "cpu", precision: str = "float32") -> Checkpoint:
    """Read a checkpoint; the model is in evaluation mode on `device`.

    The file may come from anyone: each part is checked before it is used, and none chooses code that is run.

    precision: of the vision tower when it embeds: auto, fp16, bf16 or float32; see `embedding_dtype`.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this project; naming the part that is wrong.
    """
    content = _read(path)
    try:
        model = _build_model(content["config"], content["weights"])
        return Checkpoint(
            model=place(model, device).eval(),
            tokenizer=_unpack_tokenizer(content["tokenizer"], model.text.vocabulary),
            transform=_checked_transform(content["transform"], model.vision.patch),
            params=_checked_params(content["params"], model.text.positions),
            metrics=content["metrics"],
            data_hash=content["data_hash"],
            versions=content["versions"],
            facts=_checked_facts(content.get(FACTS)),
            likeness=_checked_likeness(content.get(LIKENESS), model.text.width),
            vision_dtype=embedding_dtype(precision, torch.device(device)),
        )
    except _WrongPart as error:
        raise UserError(f"{path} is no usable checkpoint: {error}") from None


class _WrongPart(Exception):
    """What is wrong with a part of a checkpoint."""


def _build_model(values: dict[str, Any], weights: dict[str, torch.Tensor]) -> KneeRadDinoSigLIPModel:
    try:
        config = KneeRadDinoSigLIPConfig.from_dict(_without_implementations(values))
        model = KneeRadDinoSigLIPModel(config, is_empty=True)
    # torch raises many kinds for values that no model can have, as the library of another family's encoder does
    except Exception as error:
        raise _WrongPart(f"its config builds no model ({type(error).__name__}: {_first_line(error)})") from None
    if model.image_mean.numel() != 3 or model.image_std.numel() != 3 or not (model.image_std > 0).all():
        raise _WrongPart("image_mean and image_std of its config must be three numbers each, image_std above 0")
    weights = {name: weight for name, weight in weights.items() if _is_plain(weight)}
    if difference := _difference(weights, model.state_dict()):
        raise _WrongPart(f"config and weights do not fit: {difference}")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return model


def _without_implementations(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the names of attention code: the library would fetch a name it does not know from the hub."""
    return {
        key: _without_implementations(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if not str(key).endswith(("_implementation", "_implementation_internal"))
    }


def _difference(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """The first weight whose shape is not the model's, and how many there are; empty if none is."""
    odd = sorted(name for name in weights.keys() | own.keys() if _shape(weights, name) != _shape(own, name))
    if not odd:
        return ""
    found = f"{odd[0]} has shape {_shape(weights, odd[0])} for {_shape(own, odd[0])}"
    return found + (f", and {len(odd) - 1} others differ" if len(odd) > 1 else "")


def _is_plain(weight: Any) -> bool:
    """Dense real numbers: the imaginary part of others would be dropped in silence."""
    is_dense = isinstance(weight, torch.Tensor) and weight.layout == torch.strided and not weight.is_meta
    return is_dense and weight.is_floating_point()


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _checked_transform(values: dict[str, Any], patch: int) -> Transform:
    named = {name: values.get(name) for name in PreprocessParams.model_fields}
    size = values.get("image_size")
    try:
        PreprocessParams.model_validate(named)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _WrongPart(f"{wrong['loc'][0]} = {wrong['input']!r} of its transform: {wrong['msg']}") from None
    if not isinstance(size, int) or not 0 < size <= LARGEST_IMAGE or size % patch:
        raise _WrongPart(
            f"image_size = {size!r} of its transform: must be a multiple of {patch} up to {LARGEST_IMAGE} pixels"
        )
    return Transform.from_dict(values)


def _checked_params(params: dict[str, Any], positions: int) -> dict[str, Any]:
    section = params.get("model")
    length = section.get("max_text_length") if isinstance(section, dict) else None
    if not isinstance(length, int) or not 1 < length <= positions:
        raise _WrongPart(f"model.max_text_length = {length!r} of its params: must be a number up to {positions}")
    return params


def _checked_facts(values: Any) -> TrainingFacts | None:
    try:
        return None if values is None else TrainingFacts.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _WrongPart(f"{'.'.join(map(str, wrong['loc']))} of its {FACTS}: {wrong['msg']}") from None


def _checked_likeness(values: Any, width: int) -> Likeness | None:
    try:
        return None if values is None else Likeness.from_dict(values, width)
    except UserError as error:
        raise _WrongPart(str(error)) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]


def start_from(model: KneeRadDinoSigLIPModel, path: Path) -> None:
    """Give a model the weights of a checkpoint of the same encoders, in place; its text position table may be shorter.

    Image position tables fit any image size, so a model trained at 224 px can go on at 518.

    Raises:
        UserError: the file is no checkpoint, or its weights are another architecture's.
    """
    found = load_checkpoint(path).model
    found.text.extend_positions(model.text.positions)
    if difference := _difference(found.state_dict(), model.state_dict()):
        raise UserError(f"train.init_from = {path}: is a model of other encoders than params.yaml names: {difference}")
    model.load_state_dict(found.state_dict())


def _read(path: Path) -> dict[str, Any]:
    check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; train a model first (`dvc repro`) or name another file") from None
    # torch raises many kinds for a file that is no checkpoint: pickle, zip, runtime and key errors
    except Exception as error:
        kind = type(error).__name__
        raise UserError(
            f"{path} is not a knee-siglip checkpoint ({kind} while reading it); give one such as models/best_model.pt"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "no format entry") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is not a knee-siglip checkpoint of format {FORMAT}: found {found}")
    for part, expected in PARTS.items():
        if not isinstance(content.get(part), expected):
            raise UserError(f"{path} is no usable checkpoint: its part {part} is missing or no {expected.__name__}")
    return content


def check_archive(path: Path) -> None:
    """Check the file's own checksums, which torch does not: one flipped bit would silently be another model.

    Raises:
        UserError: naming the entry that is damaged; it is a folder, pipe or device, which may have no end.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file; give a checkpoint such as models/best_model.pt")
    if not zipfile.is_zipfile(path):
        return  # missing, or no checkpoint at all: loading says so
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again, or train again") from None
    if damaged is not None:
        raise UserError(f"{path} is damaged (wrong checksum of {damaged}); copy it again, or train again")


def _pack_tokenizer(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Tokenizer files as byte tensors, which `weights_only` accepts."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir())
        return {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files}


def _unpack_tokenizer(files: dict[str, torch.Tensor], vocabulary: int) -> Tokenizer:
    """vocabulary: tokens that the text encoder has."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if not isinstance(name, str) or Path(name).name != name or name == "..":
                raise _WrongPart(f"its tokenizer has a file named {name!r}, which is no plain name")
            if not isinstance(content, torch.Tensor) or content.dtype != torch.uint8:
                raise _WrongPart(f"the file {name} of its tokenizer holds no bytes")
            (Path(folder) / name).write_bytes(content.numpy().tobytes())
        try:
            tokenizer = load_tokenizer(Path(folder))
        except UserError as error:
            raise _WrongPart(str(error).replace(folder, "it")) from None
    if len(tokenizer) > vocabulary:
        raise _WrongPart(f"its tokenizer has {len(tokenizer)} tokens, its text encoder only {vocabulary}")
    return tokenizer
