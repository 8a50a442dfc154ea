"""The phases in the order in which they run: the goals first, so that a short run still measures them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from claims import Claim
from gpu_phases import machine, reading, smoke, steps
from gpu_phases.exactness import gradient_differences, one_large_step
from gpu_phases.reading import StoredImages
from gpu_phases.runner import Figures, Phase, Results
from gpu_phases.scale import Scale
from gpu_phases.training import OurBatches, ReadyBatches, Task, as_many_as_fit, train_open_clip, train_ours, train_plain

from knee_siglip.params.sections import GradientCheckpointingParams

EAGER: dict[str, Any] = {"mixed_precision": "bf16", "compile": False, "cuda_graphs": False}
DEFAULT: dict[str, Any] = {"mixed_precision": "bf16", "compile": True, "cuda_graphs": True}
WAYS = ("eager", "by default")
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient checkpointing": EAGER | {"gradient_checkpointing": GradientCheckpointingParams(vision=True, text=True)},
    "eager attention": EAGER | {"attention": "eager"},
    "no prefetch": EAGER | {"prefetch": 0},
    "float32 with TF32": EAGER | {"mixed_precision": "none"},
}

MFU, OVER_OPEN_CLIP, WAIT, DISTANCE = 0.40, 1.15, 0.02, 1e-2
BF16_GRADIENTS, FLOAT32_PIECES, BF16_PIECES, ROUNDING, RESUMED = 0.10, 1e-5, 2e-2, 1e-3, 0.05


def all_phases(scale: Scale, device: torch.device, images: StoredImages) -> Iterator[Phase]:
    """Every phase; `images`: the store that the last ones read."""
    first = Task(scale.sizes, *scale.trainings[0], scale.eager_steps, device)
    yield Phase("machine", 10, partial(machine.describe, scale, device))
    yield Phase("attention backends", 10, partial(machine.attention_backends, scale, device))
    yield from smoke_phases(replace(first, batch_size=scale.smoke))
    yield from training_phases(scale, first)
    yield from peer_phases(scale, first)
    yield from step_phases(scale, first)
    yield from reading_phases(scale, first, images)
    few = replace(first, steps=scale.plain_steps)
    for name, options in OPTIONS.items():
        yield Phase(f"train with {name}", 10, partial(train_ours, few, **options))


def smoke_phases(task: Task) -> Iterator[Phase]:
    """Right before fast."""
    yield Phase("bf16 gradients", 8, partial(smoke.bf16_beside_float32, task), bf16_claims)
    for precision, goal in (("none", FLOAT32_PIECES), ("bf16", BF16_PIECES)):
        run = partial(gradient_differences, task, task.batch_size // 4, precision)
        yield Phase(f"gradients in pieces, {precision}", 8, run, partial(pieces_claims, precision, goal))
    yield Phase("skipped step", 3, partial(smoke.skipped_step, task), skipped_claims)
    # a large batch: its activations must outweigh weights, moments and gradients
    many = replace(task, batch_size=8 * task.batch_size)
    yield Phase("full memory", 4, partial(smoke.full_memory, many), memory_claims)
    yield Phase("resumed training", 8, partial(smoke.resumed, task), resumed_claims)
    for name, by_graphs in (("one by one", False), ("by graphs", True)):
        run = partial(smoke.host_waits, task, cuda_graphs=by_graphs)
        yield Phase(f"waits of the host, kernels {name}", 4, run, partial(waits_claims, name))
    yield Phase("training by graphs", 8, partial(smoke.recorded, task), recorded_claims)


def training_phases(scale: Scale, first: Task) -> Iterator[Phase]:
    """This project's Trainer at every size: eager, and as it is by default, compiled and by CUDA graphs."""
    for image_size, batch_size in scale.trainings:
        task = replace(first, image_size=image_size, batch_size=batch_size)
        name = size_name(image_size, batch_size)
        yield Phase(f"train {name}, eager", 12, partial(train_ours, task, **EAGER))
        run = partial(train_ours, replace(task, steps=scale.compiled_steps), **DEFAULT)
        yield Phase(f"train {name}, by default", 30, run, partial(training_claims, name))


def peer_phases(scale: Scale, first: Task) -> Iterator[Phase]:
    """open_clip on the same sizes and with the same data path, and the plain loop."""
    for image_size, batch_size in scale.trainings:
        task = replace(first, image_size=image_size, batch_size=batch_size, steps=scale.peer_steps)
        side = scale.peer_sides.get(image_size, image_size)
        name = size_name(image_size, batch_size)
        train = partial(train_open_clip, image_size=side, changes=scale.peer, data=ReadyBatches)
        claims = partial(peer_claims, name)
        yield Phase(f"open_clip {name}", 12, partial(as_many_as_fit, train, task), claims, "open_clip")
    same_path = partial(train_open_clip, image_size=side_of(scale), changes=scale.peer, data=OurBatches)
    task = replace(first, steps=scale.peer_steps)
    yield Phase("open_clip on our data path", 12, partial(as_many_as_fit, same_path, task), package="open_clip")
    slow = replace(first, steps=scale.plain_steps)
    for name, half, goal in (("fp16", True, 1.0), ("fp32", False, 3.0)):
        plain = partial(train_plain, half=half)
        claims = partial(plain_claims, scale, name, goal)
        yield Phase(f"plain loop, {name}", 14, partial(as_many_as_fit, plain, slow), claims)


def step_phases(scale: Scale, first: Task) -> Iterator[Phase]:
    """What a step consists of."""
    few = replace(first, steps=3)
    yield Phase("profile, eager", 6, partial(steps.profiled, few, **EAGER))
    yield Phase("profile, by default", 25, partial(steps.profiled, few, **DEFAULT))
    loss = partial(steps.loss_alone, scale.sizes.text.width, scale.losses, first.device)
    yield Phase("loss alone", 6, loss, partial(loss_claims, scale))
    large = replace(first, batch_size=scale.exact[0], steps=1)
    run = partial(one_large_step, large, scale.exact[1], **EAGER)
    yield Phase(f"one step of {scale.exact[0]} pairs", 40, run, large_claims)


def reading_phases(scale: Scale, first: Task, images: StoredImages) -> Iterator[Phase]:
    """Frozen features, embedding, and training from the store."""
    for image_size, batch_size in scale.embedding:
        task = replace(first, image_size=image_size, batch_size=batch_size, steps=scale.embedding_batches)
        name = size_name(image_size, batch_size)
        yield Phase(f"embedding {name}", 12, partial(reading.embed, task), partial(embedding_claims, name))
    yield Phase("training from the store", 25, partial(reading.train_from_store, first, images, **EAGER), store_claims)
    yield Phase("frozen features", 12, partial(reading.compute_features, first, images))
    for batch_size in scale.features:
        task = replace(first, batch_size=batch_size, steps=scale.compiled_steps)
        yield Phase(f"cached features, batch {batch_size}", 12, partial(reading.train_on_features, task, **EAGER))


def size_name(image_size: int, batch_size: int) -> str:
    """Of phases and goals."""
    return f"{image_size} px, batch {batch_size}"


def side_of(scale: Scale) -> int:
    """The peer's image side in the first training."""
    image_size = scale.trainings[0][0]
    return scale.peer_sides.get(image_size, image_size)


def best_training(name: str, results: Results) -> Figures:
    """The faster of both ways.

    Raises:
        ValueError: neither was measured.
    """
    found = [results[f"train {name}, {way}"] for way in WAYS if f"train {name}, {way}" in results]
    return max(found, key=lambda figures: figures["pairs_per_second"])


# --------------------------------------------------------------------------------------------------------------- goals


def bf16_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """Relative norm of the difference."""
    yield Claim("bf16 gradients beside float32", figures["difference"], "<=", BF16_GRADIENTS)


def pieces_claims(precision: str, goal: float, figures: Figures, _: Results) -> Iterator[Claim]:
    """Norms over all parameters together."""
    yield Claim(f"gradients in pieces beside undivided, {precision}", figures["all"], "<=", goal)


def skipped_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """Weights and moments bit for bit, and training goes on."""
    yield Claim("values that a skipped step changes", figures["changed"], "<=", 0)
    yield Claim("steps skipped for a NaN", figures["skipped"], ">=", 1)
    yield Claim("the next step trains", figures["next_step_trains"], ">=", 1)


def memory_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """Smaller pieces, the same loss."""
    yield Claim("out of memory: the batch was divided", figures["halved"], ">=", 1)
    yield Claim("out of memory: loss beside undivided", figures["loss_difference"], "<=", ROUNDING)


def resumed_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """Moments that were not restored would make a difference as large as the training's own steps."""
    yield Claim("resumed beside uninterrupted", figures["resumed"], "<=", RESUMED)


def recorded_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """As far from kernels launched one by one as these are from themselves, and recorded at all on a GPU."""
    yield Claim("steps by CUDA graphs beside others", figures["recorded"], "<=", RESUMED)
    yield Claim("CUDA graphs were recorded", figures["graphs"], ">=", figures["graphs_wanted"])


def waits_claims(name: str, figures: Figures, _: Results) -> Iterator[Claim]:
    """Between flushes."""
    yield Claim(f"waits of the host in a step, kernels {name}", figures["waits_a_step"], "<=", 0)


def training_claims(name: str, _: Figures, results: Results) -> Iterator[Claim]:
    """MFU at the batches that the goal names."""
    best = best_training(name, results)
    if "mfu" in best and name != size_name(224, 64):
        yield Claim(f"MFU, {name}", best["mfu"], ">=", MFU)
    yield Claim(f"share of the time without data, {name}", best["data_wait_share"], "<=", WAIT)


def peer_claims(name: str, figures: Figures, results: Results) -> Iterator[Claim]:
    """Pairs/s of the faster of our ways."""
    ratio = best_training(name, results)["pairs_per_second"] / figures["pairs_per_second"]
    yield Claim(f"pairs/s of ours / open_clip, {name}", ratio, ">=", OVER_OPEN_CLIP, "times")


def plain_claims(scale: Scale, name: str, goal: float, figures: Figures, results: Results) -> Iterator[Claim]:
    """Pairs/s beside a loop as one writes it first."""
    ours = best_training(size_name(*scale.trainings[0]), results)["pairs_per_second"]
    yield Claim(f"pairs/s of ours / plain loop in {name}", ours / figures["pairs_per_second"], ">=", goal, "times")


def loss_claims(scale: Scale, figures: Figures, results: Results) -> Iterator[Claim]:
    """Share of a step at the smallest batch of the first image size."""
    count = scale.losses[0]
    name = size_name(scale.trainings[0][0], count)
    share = figures[str(count)]["ms"] / best_training(name, results)["step_ms"]
    yield Claim(f"loss's share of a step, {name}", share, "<=", 0.02)


def large_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """Loss and gradients are numbers."""
    yield Claim(f"one step of {figures['batch_size']} pairs is finite", figures["finite"], ">=", 1)


def embedding_claims(name: str, figures: Figures, _: Results) -> Iterator[Claim]:
    """Of the device's precision to float32."""
    yield Claim(f"embeddings beside float32, distance, {name}", figures["largest_distance"], "<=", DISTANCE)
    yield Claim(f"embeddings beside float32, cosine, {name}", figures["largest_cosine_difference"], "<=", DISTANCE)


def store_claims(figures: Figures, _: Results) -> Iterator[Claim]:
    """The reader keeps up."""
    yield Claim("share of the time without data, from the store", figures["data_wait_share"], "<=", WAIT)
