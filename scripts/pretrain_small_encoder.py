"""Pretrain the small vision encoder that ships with the project, on synthetic knees alone.

    python scripts/pretrain_small_encoder.py --output src/knee_siglip/encoders/small/vision   # docs/small-encoder.md
    python scripts/pretrain_small_encoder.py --output toy --train 512 --held-out 128 --epochs 1   # a minute

Supervised multi-task training of a tiny Dinov2 on what the generator knows about each knee: heads on the CLS token
(grade, side, compartment, alignment, findings) and one on the patch tokens (which findings lie here). Heads are thrown
away. The knees come from random streams that no sample can reach, whatever its seed.
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
from rich.progress import track
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Dinov2Config, Dinov2Model

from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.sample.findings import SIDES, draw_labels
from knee_siglip.sample.radiograph import draw_knee

TRAIN_STREAM, HELD_OUT_STREAM = 101, 102
"""Spawn keys: a stream with one never equals a knee's of the sample, which has none."""

DRAWN_SIZE, SIZE, LARGE = 512, 224, 448
WIDTH, PATCH = 96, 28
GRID = LARGE // PATCH
FINDINGS = ("effusion", "chondrocalcinosis", "loose_body", "fracture", "arthroplasty")
BOXES = ("joint_space_narrowing", "osteophytes", "subchondral_sclerosis", *FINDINGS)
COMPARTMENTS = (None, "medial", "lateral")
ALIGNMENTS = ("normal", "varus", "valgus")
NO_GRADE = -100
NOISE_FIELDS = 8
"""Random fields per batch; drawing one for each picture would cost a tenth of the time."""


Drawn = tuple[np.ndarray, np.ndarray | None, list[int], np.ndarray]
"""Picture at 224, at 448 (or None), targets, finding maps uint8 (len(BOXES), GRID, GRID)."""


def draw_one(seed: int, stream: int, large: int, index: int) -> Drawn:
    """Knee `index` of a stream as the pipeline would hand it to the encoder; at 448 too for the first `large`."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=(stream,)))
    labels = draw_labels(rng, SIDES[index % 2])
    grey, findings = draw_knee(rng, labels, DRAWN_SIZE)
    maps = np.zeros((len(BOXES), GRID, GRID), dtype=np.uint8)
    for found in findings:
        if found["finding"] in BOXES:
            x0, y0, x1, y1 = np.array(found["box"]) * GRID
            maps[BOXES.index(found["finding"]), int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = 1
    targets = [
        NO_GRADE if labels.kl_grade is None else labels.kl_grade,
        SIDES.index(labels.side),
        COMPARTMENTS.index(labels.compartment),
        ALIGNMENTS.index(labels.alignment),
        COMPARTMENTS.index(labels.fracture_side),
        int(labels.effusion),
        *(int(labels.special == name) for name in FINDINGS[1:]),
    ]
    big = Transform(LARGE, "pad", "local")(grey) if index < large else None
    return Transform(SIZE, "pad", "local")(grey), big, targets, maps


@dataclass
class Knees:
    """pixels: uint8 (N, 224, 224); large: the first M at 448; targets: int64 (N, 5 + F); maps: (N, B, 16, 16)."""

    pixels: np.ndarray
    large: np.ndarray
    targets: torch.Tensor
    maps: np.ndarray


def load_knees(cache: Path, name: str, stream: int, count: int, large: int, seed: int) -> Knees:
    """Draw `count` knees once; a second call with the same numbers reads the cache."""
    folder = cache / f"{name}-{seed}-{count}-{large}"
    if not (folder / "maps.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _draw_all(folder, stream, count, large, seed)
    targets = torch.from_numpy(np.load(folder / "targets.npy"))
    pixels, big, maps = (np.load(folder / f"{part}.npy", mmap_mode="r") for part in ("pixels", "large", "maps"))
    return Knees(pixels, big, targets, maps)


def _draw_all(folder: Path, stream: int, count: int, large: int, seed: int) -> None:
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (count, SIZE, SIZE))
    big = np.lib.format.open_memmap(folder / "large.npy", "w+", np.uint8, (large, LARGE, LARGE))
    targets = np.zeros((count, 5 + len(FINDINGS)), dtype=np.int64)
    maps = np.zeros((count, len(BOXES), GRID, GRID), dtype=np.uint8)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(partial(draw_one, seed, stream, large), range(count), chunksize=16)
        for i, (small, at_large, target, found) in enumerate(track(drawn, folder.name, total=count)):
            pixels[i], targets[i], maps[i] = small, target, found
            if at_large is not None:
                big[i] = at_large
    np.save(folder / "targets.npy", targets)
    np.save(folder / "maps.npy", maps)


Logits = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""pixels: float (B, 1, S, S) in 0-1; maps: float (B, len(BOXES), 16, 16); targets: int64 (B, 5 + F)."""
JUDGED = {"side": 2, "compartment": 3, "alignment": 3, "broken": 3}
SEEN = {"seen_compartment": 3, "seen_alignment": 3, "seen_broken": 3}
TASKS = {"kl": 5, "ordinal": 4} | JUDGED | SEEN | {"findings": len(FINDINGS)}
"""Head -> outputs. SEEN: by the picture's left and right instead of medial and lateral, a stepping stone."""


class MultiTask(nn.Module):
    """The encoder with linear heads: one on the normalised CLS token, one on each patch token."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=3, mlp_ratio=2)
        config.update({"patch_size": PATCH, "image_size": SIZE, "use_mask_token": False, "layerscale_value": 1.0})
        config.num_channels = 1  # three equal channels would cost three times as much; `save` makes them
        self.encoder = Dinov2Model(config)
        self.mean, self.std = mean, std
        self.head = nn.Linear(WIDTH, sum(TASKS.values()))
        self.patch_head = nn.Linear(WIDTH, len(BOXES))

    def forward(self, pixels: torch.Tensor) -> tuple[Logits, torch.Tensor]:
        """pixels: float (B, 1, S, S) in 0-1. Returns logits by task and patch logits (B, n, n, len(BOXES))."""
        tokens = self.encoder((pixels - self.mean) / self.std).last_hidden_state
        side = pixels.shape[-1] // PATCH
        patches = self.patch_head(tokens[:, 1:]).unflatten(1, (side, side))
        logits = self.head(tokens[:, 0]).split(list(TASKS.values()), dim=1)
        return dict(zip(TASKS, logits, strict=True)), patches


def loss_of(logits: Logits, patches: torch.Tensor, targets: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Sum of the tasks' losses. targets: int64 (B, 5 + F); maps: float (B, n, n, len(BOXES)) in 0-1."""
    grade = targets[:, 0]
    graded = grade >= 0
    above = (grade[graded, None] > torch.arange(4)).float()
    loss = F.cross_entropy(logits["kl"][graded], grade[graded])
    loss = loss + 2 * F.binary_cross_entropy_with_logits(logits["ordinal"][graded], above)
    for column, task in enumerate(JUDGED, start=1):
        loss = loss + F.cross_entropy(logits[task], targets[:, column])
    right_knee = targets[:, 1] == SIDES.index("right")
    for column, task in enumerate(SEEN, start=2):
        judged = targets[:, column]
        loss = loss + F.cross_entropy(logits[task], torch.where(right_knee & (judged > 0), 3 - judged, judged))
    rare = torch.tensor([1.0, 4.0, 4.0, 4.0, 4.0])
    loss = loss + 2 * F.binary_cross_entropy_with_logits(logits["findings"], targets[:, 5:].float(), pos_weight=rare)
    return loss + 2 * F.binary_cross_entropy_with_logits(patches, maps, pos_weight=torch.tensor(4.0))


@dataclass(frozen=True)
class Changes:
    """Largest random changes of a picture.

    angle in radians; scale, right and down as shares of half the side; contrast: log; noise: standard deviation.
    """

    angle: float = 0.09
    scale: float = 0.08
    right: float = 0.05
    down: float = 0.05
    contrast: float = 0.35
    noise: float = 0.03


def change(
    pixels: torch.Tensor, amounts: Changes, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Change pose and exposure of pixels (B, 1, S, S) in 0-1; also the affine maps (B, 2, 3), mirrored (B,)."""
    b = len(pixels)
    u = torch.rand(8, b, generator=generator) * 2 - 1
    mirrored = u[0] < 0
    angle, scale = u[1] * amounts.angle, 1 + amounts.scale * u[2]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    flip = torch.where(mirrored, -1.0, 1.0)
    rows = [cos * flip, -sin, u[3] * amounts.right, sin * flip, cos, u[4] * amounts.down]
    theta = torch.stack(rows, dim=1).view(b, 2, 3)
    grid = F.affine_grid(theta, list(pixels.shape), False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    soft = u[5] > 0
    blurred = F.avg_pool2d(pixels[soft], 3, 1, 1, count_include_pad=False)
    pixels[soft] = pixels[soft].lerp_(blurred, (1.2 * u[5, soft]).clamp_(max=1).view(-1, 1, 1, 1))
    contrast, brightness = (amounts.contrast * u[6]).exp().view(b, 1, 1, 1), (0.08 * u[7]).view(b, 1, 1, 1)
    pixels.sub_(0.5).mul_(contrast).add_(0.5 + brightness).clamp_(0, 1)
    noise = torch.randn(NOISE_FIELDS, *pixels.shape[1:], generator=generator)
    strength = amounts.noise * torch.rand(b, 1, 1, 1, generator=generator)
    pixels.addcmul_(noise[torch.arange(b) % NOISE_FIELDS], strength)
    return pixels, theta, mirrored


def augment(batch: Batch, generator: torch.Generator) -> Batch:
    """Small changes of pose and exposure; a mirrored knee is a knee of the other side."""
    pixels, maps, targets = batch
    pixels, theta, mirrored = change(pixels, Changes(), generator)
    moved = F.grid_sample(maps, F.affine_grid(theta, list(maps.shape), False), align_corners=False)
    targets = targets.clone()
    targets[:, 1] = torch.where(mirrored, 1 - targets[:, 1], targets[:, 1])
    return pixels, moved, targets


def batch_of(knees: Knees, rows: np.ndarray, size: int) -> Batch:
    """The knees of these rows, not augmented."""
    source = knees.pixels if size == SIZE else knees.large
    pixels = torch.from_numpy(source[rows]).float().div_(255).unsqueeze(1)
    return pixels, torch.from_numpy(knees.maps[rows]).float(), knees.targets[torch.from_numpy(rows)]


def plan_epoch(rng: np.random.Generator, knees: Knees, batch: int) -> list[tuple[int, np.ndarray]]:
    """(size, rows) of every step: all knees at 224 and, every tenth step, a quarter batch at 448."""
    rows = rng.permutation(len(knees.pixels))
    steps: list[tuple[int, np.ndarray]] = []
    for i, start in enumerate(range(0, len(rows) - batch + 1, batch)):
        steps.append((SIZE, np.sort(rows[start : start + batch])))
        if i % 10 == 9 and len(knees.large) >= batch // 4:
            steps.append((LARGE, np.sort(rng.choice(len(knees.large), batch // 4, replace=False))))
    return steps


def build_optimizers(model: MultiTask, learning_rate: float, steps: int) -> list[tuple[Optimizer, LambdaLR]]:
    """Muon (https://kellerjordan.github.io/posts/muon) for the layers' matrices, AdamW for the rest.

    Both warm up over 3 % of the steps, hold, and fall linearly to zero over the last half.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "encoder.encoder.layer" in name]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers: list[Optimizer] = [
        torch.optim.Muon(matrices, learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, learning_rate, weight_decay=0.05),
    ]

    def factor(step: int) -> float:
        return min((step + 1) / (0.03 * steps), 2 * (1 - step / steps), 1.0)

    return [(optimizer, LambdaLR(optimizer, factor)) for optimizer in optimizers]


def train_step(
    model: MultiTask, optimizers: list[tuple[Optimizer, LambdaLR]], batch: Batch, generator: torch.Generator
) -> float:
    """One update; fails loudly on a loss that is not finite."""
    pixels, maps, targets = augment(batch, generator)
    logits, patches = model(pixels)
    maps = F.adaptive_max_pool2d(maps, patches.shape[1]).permute(0, 2, 3, 1)
    loss = loss_of(logits, patches, targets, maps)
    if not torch.isfinite(loss):
        raise RuntimeError(f"loss is {loss.item()}: lower --learning-rate")
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, schedule in optimizers:
        optimizer.step()
        schedule.step()
    return loss.item()


@torch.no_grad()
def held_out_figures(model: MultiTask, knees: Knees, size: int) -> dict[str, float]:
    """Accuracy, kappa and areas under the ROC curve on knees of another stream, not augmented."""
    model.eval()
    count = len(knees.pixels) if size == SIZE else len(knees.large)
    parts = [model(batch_of(knees, np.arange(i, min(i + 50, count)), size)[0])[0] for i in range(0, count, 50)]
    model.train()
    logits = {task: torch.cat([part[task] for part in parts]) for task in TASKS}
    targets = knees.targets[:count]
    grade, graded = targets[:, 0], targets[:, 0] >= 0
    guessed = (logits["ordinal"].sigmoid() > 0.5).sum(dim=1)
    figures = {
        "kl_accuracy": (guessed == grade)[graded].float().mean().item(),
        "kl_kappa": float(cohen_kappa_score(grade[graded], guessed[graded], weights="quadratic")),
    }
    for column, task in enumerate(JUDGED, start=1):
        figures[f"{task}_accuracy"] = (logits[task].argmax(dim=1) == targets[:, column]).float().mean().item()
    for i, name in enumerate(FINDINGS):
        truth = targets[:, 5 + i]
        seen = 0 < truth.sum() < count  # a toy run may have none
        figures[f"{name}_auroc"] = float(roc_auc_score(truth, logits["findings"][:, i])) if seen else float("nan")
    return {name: round(value, 3) for name, value in figures.items()}


def save(model: MultiTask, folder: Path) -> None:
    """float16 weights, config and RAD-DINO's kind of preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Dinov2Config.from_dict(model.encoder.config.to_dict() | {"num_channels": 3})
    weights = model.encoder.state_dict()
    kernel = "embeddings.patch_embeddings.projection.weight"
    weights[kernel] = weights[kernel].repeat(1, 3, 1, 1) / 3
    half = Dinov2Model(config)
    half.load_state_dict(weights)
    half.half().save_pretrained(folder)
    processor = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [model.mean] * 3,
        "image_processor_type": "BitImageProcessor",
        "image_std": [model.std] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIZE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def main(args: argparse.Namespace) -> None:
    """Draw, train, print the held-out figures and save the encoder after every epoch."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    held_out = load_knees(args.cache, "held-out", HELD_OUT_STREAM, args.held_out, args.held_out // 4, args.seed)
    knees = load_knees(args.cache, "train", TRAIN_STREAM, args.train, args.train // 8, args.seed)
    some = knees.pixels[:1000] / np.float32(255)
    model = MultiTask(round(float(some.mean()), 4), round(float(some.std()), 4))
    steps = args.epochs * len(plan_epoch(np.random.default_rng(0), knees, args.batch_size))
    optimizers = build_optimizers(model, args.learning_rate, steps)
    for epoch in range(args.epochs):
        losses = []
        for size, rows in plan_epoch(rng, knees, args.batch_size):
            losses.append(train_step(model, optimizers, batch_of(knees, rows, size), generator))
        save(model, args.output)
        progress = {"epoch": epoch + 1, "loss": round(float(np.mean(losses)), 3)}
        print(json.dumps(progress | held_out_figures(model, held_out, SIZE)), flush=True)
    print(json.dumps({"image_size": LARGE} | held_out_figures(model, held_out, LARGE)), flush=True)


def parse() -> argparse.Namespace:
    """The defaults are those of the shipped weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the encoder in Hugging Face format")
    parser.add_argument("--cache", type=Path, default=Path(".store/pretraining"), help="folder for the drawn knees")
    parser.add_argument("--train", type=int, default=16000)
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
