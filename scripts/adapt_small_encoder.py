"""Second phase of the small encoder's pretraining: from the sample's knees towards real radiographs, still synthetic.

    python scripts/pretrain_small_encoder.py --output phase-1
    python scripts/adapt_small_encoder.py --start-from phase-1 --output phase-2
    python scripts/adapt_small_encoder.py --start-from phase-1 --output toy --joints 128 --knees 64 --steps 4   # toy

Every step sees joints that look like radiographs (`joint_knees`), from which the CLS token learns to measure joint
spaces, osteophytes and sclerosis, and a few of the first phase's knees with their tasks, which it must not forget. What
is kept are weights between the two phases'.
"""

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from joint_knees import MEASURES, draw_joint
from pretrain_small_encoder import (
    HELD_OUT_STREAM,
    LARGE,
    SIZE,
    TRAIN_STREAM,
    WIDTH,
    Changes,
    Knees,
    MultiTask,
    augment,
    batch_of,
    build_optimizers,
    change,
    held_out_figures,
    load_knees,
    loss_of,
    save,
)
from rich.progress import track
from safetensors.torch import load_file, save_file
from sklearn.metrics import cohen_kappa_score
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Model

from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.sample.findings import SIDES

WEIGHTS = "model.safetensors"
JOINT_STREAM, HELD_OUT_JOINT_STREAM = 103, 104
DRAWN_SIZE = 336
CHANGES = Changes(angle=0.1, scale=0.12, right=0.06, down=0.08, contrast=0.4, noise=0.06)
JOINTS_PER_STEP, KNEES_PER_STEP, LARGE_PER_STEP = 48, 16, 6
LARGE_EVERY = 20
"""Every so many steps the first phase's knees are read at 448 px."""

OUTPUTS = {"measures": len(MEASURES), "grade": 5, "ordinal": 4, "side": 2}
MIRRORED = [MEASURES.index(_swapped) for _swapped in (
    name.replace("left", "*").replace("right", "left").replace("*", "right") for name in MEASURES
)]  # fmt: skip
"""Where each measure of a mirrored picture is found."""


@dataclass
class Joints:
    """pixels: uint8 (N, 224, 224); measures: float32 (N, len(MEASURES)); labels: int64 (N, 2), grade and side."""

    pixels: np.ndarray
    measures: torch.Tensor
    labels: torch.Tensor


def draw_one(seed: int, stream: int, index: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Joint `index` of a stream as the pipeline would hand it to the encoder, its measures, its grade and side."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=(stream,)))
    grey, measures, grade, flip = draw_joint(rng, DRAWN_SIZE)
    return Transform(SIZE, "pad", "local")(grey), measures, (grade, SIDES.index("left" if flip > 0 else "right"))


def load_joints(cache: Path, name: str, stream: int, count: int, seed: int) -> Joints:
    """Draw `count` joints once; a second call with the same numbers reads the cache."""
    folder = cache / f"{name}-{seed}-{count}"
    if not (folder / "labels.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            drawn = pool.map(partial(draw_one, seed, stream), range(count), chunksize=16)
            pixels, measures, labels = zip(*track(drawn, folder.name, total=count), strict=True)
        np.save(folder / "pixels.npy", np.stack(pixels))
        np.save(folder / "measures.npy", np.stack(measures))
        np.save(folder / "labels.npy", np.array(labels, dtype=np.int64))
    measured = torch.from_numpy(np.load(folder / "measures.npy"))
    labelled = torch.from_numpy(np.load(folder / "labels.npy"))
    return Joints(np.load(folder / "pixels.npy", mmap_mode="r"), measured, labelled)


class Adapted(MultiTask):
    """The first phase's encoder and tasks, and a linear head for the joints' measures, grade and side."""

    def __init__(self, folder: Path, scale: tuple[torch.Tensor, torch.Tensor]):
        processor = json.loads((folder / "preprocessor_config.json").read_text())
        super().__init__(processor["image_mean"][0], processor["image_std"][0])
        weights = Dinov2Model.from_pretrained(folder).float().state_dict()
        kernel = "embeddings.patch_embeddings.projection.weight"
        weights[kernel] = weights[kernel].sum(dim=1, keepdim=True)
        self.encoder.load_state_dict(weights)
        self.joint_head = nn.Linear(WIDTH, sum(OUTPUTS.values()))
        self.measure_mean, self.measure_std = scale

    def read_joints(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """pixels: float (B, 1, S, S) in 0-1. Returns each of OUTPUTS, (B, n); measures standardised."""
        cls = self.encoder((pixels - self.mean) / self.std).last_hidden_state[:, 0]
        outputs = self.joint_head(cls).split(list(OUTPUTS.values()), dim=1)
        return dict(zip(OUTPUTS, outputs, strict=True))

    def joint_loss(self, joints: Joints, rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Loss on randomly changed joints `rows`; a mirrored one exchanges left and right."""
        pixels = torch.from_numpy(joints.pixels[rows]).float().div_(255).unsqueeze(1)
        pixels, _, mirrored = change(pixels, CHANGES, generator)
        chosen = torch.from_numpy(rows)
        measures = (joints.measures[chosen] - self.measure_mean) / self.measure_std
        measures = torch.where(mirrored[:, None], measures[:, MIRRORED], measures)
        grade, side = joints.labels[chosen].unbind(dim=1)
        side = torch.where(mirrored, 1 - side, side)
        read = self.read_joints(pixels)
        above = (grade[:, None] > torch.arange(4)).float()
        loss = 0.5 * len(MEASURES) * F.smooth_l1_loss(read["measures"], measures)
        loss = loss + F.cross_entropy(read["grade"], grade) + F.cross_entropy(read["side"], side)
        return loss + 2 * F.binary_cross_entropy_with_logits(read["ordinal"], above)

    def knee_loss(self, knees: Knees, rng: np.random.Generator, size: int, generator: torch.Generator) -> torch.Tensor:
        """Loss of the first phase's tasks on a few of its knees."""
        available, count = (len(knees.large), LARGE_PER_STEP) if size == LARGE else (len(knees.pixels), KNEES_PER_STEP)
        rows = np.sort(rng.choice(available, count, replace=False))
        pixels, maps, targets = augment(batch_of(knees, rows, size), generator)
        logits, patches = self(pixels)
        maps = F.adaptive_max_pool2d(maps, patches.shape[1]).permute(0, 2, 3, 1)
        return loss_of(logits, patches, targets, maps)


@torch.no_grad()
def joint_figures(model: Adapted, joints: Joints) -> dict[str, float]:
    """Correlation of each measure, kappa of the grade and accuracy of the side on held-out joints, not changed."""
    model.eval()
    parts = []
    for start in range(0, len(joints.pixels), 100):
        pixels = torch.from_numpy(joints.pixels[start : start + 100].copy()).float().div_(255).unsqueeze(1)
        parts.append(model.read_joints(pixels))
    model.train()
    read = {name: torch.cat([part[name] for part in parts]) for name in OUTPUTS}
    grade, side = joints.labels.unbind(dim=1)
    figures = {
        "joint_kappa": float(cohen_kappa_score(grade, (read["ordinal"] > 0).sum(dim=1), weights="quadratic")),
        "joint_side_accuracy": (read["side"].argmax(dim=1) == side).float().mean().item(),
    }
    for i, name in enumerate(MEASURES):
        figures[name] = float(np.corrcoef(read["measures"][:, i], joints.measures[:, i])[0, 1])
    return {name: round(value, 3) for name, value in figures.items()}


def main(args: argparse.Namespace) -> None:
    """Draw, train, print the held-out figures and save the encoder every `--report-every` steps."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    held_out_joints = load_joints(args.cache, "held-out-joints", HELD_OUT_JOINT_STREAM, args.held_out, args.seed)
    joints = load_joints(args.cache, "joints", JOINT_STREAM, args.joints, args.seed)
    held_out = load_knees(args.cache, "held-out", HELD_OUT_STREAM, args.held_out // 2, args.held_out // 8, args.seed)
    knees = load_knees(args.cache, "train", TRAIN_STREAM, args.knees, args.knees // 8, args.seed)
    model = Adapted(args.start_from, (joints.measures.mean(dim=0), joints.measures.std(dim=0)))
    optimizers = build_optimizers(model, args.learning_rate, args.steps)
    losses = []
    for step in range(1, args.steps + 1):
        rows = np.sort(rng.choice(len(joints.pixels), JOINTS_PER_STEP, replace=False))
        size = LARGE if step % LARGE_EVERY == 0 else SIZE
        loss = model.joint_loss(joints, rows, generator) + 0.3 * model.knee_loss(knees, rng, size, generator)
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss is {loss.item()}: lower --learning-rate")
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in optimizers:
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % args.report_every == 0 or step == args.steps:
            save(model, args.output)
            figures = joint_figures(model, held_out_joints) | held_out_figures(model, held_out, SIZE)
            print(json.dumps({"step": step, "loss": round(float(np.mean(losses)), 3)} | figures), flush=True)
            losses = []
    mix(args.start_from, args.output, args.share)


def mix(start_from: Path, output: Path, share: float) -> None:
    """Move the encoder in `output` back, to that share of the way from the first phase's weights to its own.

    Source: Wortsman et al. 2022 (WiSE-FT, arXiv:2109.01903), equation 1.
    """
    before, after = load_file(start_from / WEIGHTS), load_file(output / WEIGHTS)
    mixed = {
        name: ((1 - share) * before[name].float() + share * weight.float()).to(weight.dtype)
        for name, weight in after.items()
    }
    save_file(mixed, output / WEIGHTS, metadata={"format": "pt"})


def parse() -> argparse.Namespace:
    """The defaults are those of the measured run (docs/decisions.md)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start-from", type=Path, required=True, help="encoder of the first phase")
    parser.add_argument("--output", type=Path, required=True, help="folder for the encoder in Hugging Face format")
    parser.add_argument("--cache", type=Path, default=Path(".store/pretraining"), help="folder for the drawn pictures")
    parser.add_argument("--joints", type=int, default=3200)
    parser.add_argument("--knees", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--share", type=float, default=0.7, help="of the way from the first phase's weights to the new")
    parser.add_argument("--report-every", type=int, default=250)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
