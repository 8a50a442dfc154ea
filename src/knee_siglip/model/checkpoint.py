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
import transformers
from transformers import PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from knee_siglip import __version__
from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_file
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.device import embedding_dtype, place
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.tables.text import load_tokenizer

FORMAT = "knee-siglip/1"


@dataclass
class Checkpoint:
    """A trained model with all that inference needs; `metrics` are those of the epoch it was saved at.

    tower_dtype: autocast type in which its towers embed; None is the weights' own. It is not saved.
    """

    model: KneeRadDinoSigLIPModel
    tokenizer: PreTrainedTokenizerBase
    transform: Transform
    params: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    data_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    tower_dtype: torch.dtype | None = None

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
            "knee-siglip": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
    }
    with atomic_file(path) as file:
        torch.save(content, file)


def load_checkpoint(path: Path, device: str | torch.device = "cpu", precision: str = "float32") -> Checkpoint:
    """Read a checkpoint; the model is in evaluation mode on `device`.

    precision: of the towers when they embed: auto, bf16 or float32; see `embedding_dtype`.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint of this project.
    """
    content = _read(path)
    with no_init_weights():
        model = KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig.from_dict(content["config"]))
    model.load_state_dict(content["weights"])
    return Checkpoint(
        model=place(model, device).eval(),
        tokenizer=_unpack_tokenizer(content["tokenizer"]),
        transform=Transform.from_dict(content["transform"]),
        params=content["params"],
        metrics=content["metrics"],
        data_hash=content["data_hash"],
        versions=content["versions"],
        tower_dtype=embedding_dtype(precision, torch.device(device)),
    )


def start_from(model: KneeRadDinoSigLIPModel, path: Path) -> None:
    """Give a model the weights of a checkpoint of the same encoders, in place; its text position table may be shorter.

    Image position tables fit any image size, so a model trained at 224 px can go on at 518.

    Raises:
        UserError: the file is no checkpoint, or its weights are another architecture's.
    """
    found = load_checkpoint(path).model
    found.text.extend_positions(model.text.positions)
    weights, own = found.state_dict(), model.state_dict()
    if odd := sorted(name for name in weights.keys() | own.keys() if _shape(weights, name) != _shape(own, name)):
        raise UserError(
            f"train.init_from = {path}: is a model of other encoders than params.yaml names: {len(odd)} weights differ "
            f"in shape, first {odd[0]} ({_shape(weights, odd[0])}, here {_shape(own, odd[0])})"
        )
    model.load_state_dict(weights)


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


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
    return content


def check_archive(path: Path) -> None:
    """Check the file's own checksums, which torch does not: one flipped bit would silently be another model.

    Raises:
        UserError: naming the entry that is damaged.
    """
    if not zipfile.is_zipfile(path):
        return  # missing, or no checkpoint at all: loading says so
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again, or train again") from None
    if damaged is not None:
        raise UserError(f"{path} is damaged (wrong checksum of {damaged}); copy it again, or train again")


def _pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Tokenizer files as byte tensors, which `weights_only` accepts."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(Path(folder).iterdir())
        return {file.name: torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files}


def _unpack_tokenizer(files: dict[str, torch.Tensor]) -> PreTrainedTokenizerBase:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content.numpy().tobytes())
        return load_tokenizer(Path(folder))
