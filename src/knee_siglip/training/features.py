"""Features of a wholly frozen vision tower: computed once, then read like pixels.

An epoch then costs only the text tower and the projection (locked-image tuning, Zhai et al. 2022, arXiv:2111.07991).
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import split_groups
from knee_siglip.store.features import FeatureStore
from knee_siglip.store.pixels import CachedPixels
from knee_siglip.store.rows import CachedRows

IMAGES_AT_ONCE = 64


def frozen_features(
    model: KneeRadDinoSigLIPModel,
    pixels: CachedPixels,
    image_ids: Sequence[str],
    rows: np.ndarray,
    root: Path,
    dtype: torch.dtype | None,
) -> CachedRows:
    """The vision tower's features float32 (B, W) of manifest rows, from the store under `root` or computed into it.

    Args:
        model: on its device; its vision tower is frozen.
        image_ids: of every manifest row.
        rows: (n,) the manifest rows that training reads.
        dtype: autocast type; None computes in the weights' own.

    Raises:
        UserError: features that are not finite, or a full disk.
    """
    facts = {
        "transform_key": pixels.transform.key,
        "image_size": pixels.image_size,
        "weights": weights_hash(model.vision_model),
        "image_mean": model.config.image_mean,
        "image_std": model.config.image_std,
        "precision": str(dtype or model.dtype).removeprefix("torch."),
    }
    store = FeatureStore(root, facts, model.vision.width)
    row_of = {image_ids[row]: row for row in rows}

    def compute(wanted: list[str]) -> Iterator[np.ndarray]:
        todo = np.array([row_of[image_id] for image_id in wanted])
        groups = list(split_groups(todo, IMAGES_AT_ONCE))
        for group in track(groups, "Features of the frozen image encoder"):
            # groups of one size: the last bits of a product depend on it, so that mended features would differ
            whole = np.resize(group, IMAGES_AT_ONCE)
            yield _features(model, torch.from_numpy(pixels[whole]), dtype)[: len(group)]

    store.ensure([image_ids[row] for row in rows], compute)
    return CachedRows(store, image_ids, known=rows, restore=lambda damaged: store.ensure(damaged, compute))


def weights_hash(tower: torch.nn.Module) -> str:
    """sha256 of a tower's weights, by name and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _features(model: KneeRadDinoSigLIPModel, pixels: torch.Tensor, dtype: torch.dtype | None) -> np.ndarray:
    tower = model.vision_model  # alone: damaged features are made again while the rest is being trained
    was_training = tower.training
    tower.eval()
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
        features = model.vision_features(model.normalise_grey(pixels.to(model.device)))
    tower.train(was_training)
    return features.float().cpu().numpy()
