"""python benchmarks/full_size.py [--batch_size N] [--steps N] [--output FILE]

A few training steps with the exact configs of RAD-DINO and SigLIP base (random weights) at 224 and 448 px and 512 text
positions: shapes, loss, pairs/s and peak memory. On a GPU the same in mixed precision with batches of 64. Exits
non-zero if a loss is not finite or a shape is wrong. No warm-up: the loss of random weights may rise at first.
"""

import argparse
import json
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from group_gradients import add_gradients
from transformers import Dinov2Config, SiglipTextConfig

from knee_siglip.model.device import autocast_dtype, pick_device, place
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import Batch
from knee_siglip.params.sections import AugmentParams, TrainParams
from knee_siglip.training.encoder import LocalBatch, PairEncoder
from knee_siglip.training.optimizer import build_optimizer
from knee_siglip.training.throughput import peak_memory_mb

TEXT_LENGTH = 512
# The configs on the hub, 2026-11: microsoft/rad-dino, google/siglip-base-patch16-224
RAD_DINO: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 518,
    "patch_size": 14,
}
SIGLIP: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def build(batch_size: int) -> KneeRadDinoSigLIPModel:
    """A full-size model whose text table was extended from 64 to 512 positions."""
    text = SiglipTextConfig(**SIGLIP, intermediate_size=3072, max_position_embeddings=64)
    vision = Dinov2Config(**RAD_DINO, use_mask_token=False)
    config = KneeRadDinoSigLIPConfig(vision, text, bias_init=-math.log(batch_size - 1))
    model = KneeRadDinoSigLIPModel(config)
    model.text.extend_positions(TEXT_LENGTH)
    return model


def measure(image_size: int, batch_size: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Train `steps` steps on random pairs; the first one warms up and is not timed."""
    torch.manual_seed(0)
    model = place(build(batch_size), device).train()
    params = TrainParams(batch_size=batch_size, learning_rate=1e-4)
    optimizer = build_optimizer(model, params)
    encoder = PairEncoder(model, autocast_dtype("auto", device), AugmentParams())
    pixels = torch.randint(0, 256, (batch_size, image_size, image_size), dtype=torch.uint8, device=device)
    input_ids = torch.randint(2, 32000, (batch_size, TEXT_LENGTH), device=device)
    places = torch.arange(batch_size)
    ids = places.to(device)
    batch = Batch(places.numpy(), pixels, input_ids, ids, ids, places, places)
    losses, started = [], 0.0
    for step in range(steps):
        if step == 1:
            started = time.perf_counter()
        group = LocalBatch(batch, group_size=batch_size, largest=batch_size, seed=0, step=step)
        loss = add_gradients(encoder, group, batch_size)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        image_embeds = model.get_image_features(model.normalise_pixels(pixels[:2]))
        text_embeds = model.get_text_features(input_ids[:2])
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "image_embeds": list(image_embeds.shape),
        "text_embeds": list(text_embeds.shape),
        "parameters": model.parameter_counts(),
        "losses": losses,
        "pairs_per_second": batch_size * (steps - 1) / seconds,
        "peak_memory_mb": peak_memory_mb(),
    }


def main() -> None:
    """Measure both sizes, print the table, write the result, fail on a wrong loss."""
    device = pick_device()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64 if device.type == "cuda" else 8)
    parser.add_argument("--steps", type=int, default=20 if device.type == "cuda" else 3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = [measure(size, args.batch_size, args.steps, device) for size in (224, 448)]
    for row in rows:
        print(
            f"{row['image_size']} px, batch {row['batch_size']}: embeds {row['image_embeds']} {row['text_embeds']}, "
            f"loss {row['losses'][0]:.3f} -> {row['losses'][-1]:.3f}, {row['pairs_per_second']:.2f} pairs/s, "
            f"peak {row['peak_memory_mb']:.0f} MB"
        )
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else cpu
    result = {"date": date.today().isoformat(), "hardware": hardware, "torch": torch.__version__, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    finite = all(math.isfinite(loss) for row in rows for loss in row["losses"])
    shaped = all(row[name][-1] == SIGLIP["hidden_size"] for row in rows for name in ("image_embeds", "text_embeds"))
    print(f"target: every loss finite, embeddings of width {SIGLIP['hidden_size']}; finite {finite}, shaped {shaped}")
    raise SystemExit(0 if finite and shaped else 1)


if __name__ == "__main__":
    main()
