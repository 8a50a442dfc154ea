"""How much is measured: at full size on a GPU, or every path at toy sizes on a CPU."""

from dataclasses import dataclass, field
from typing import Any

from sizes import BASE, TOY, Sizes


@dataclass(frozen=True)
class Scale:
    """What a run measures.

    trainings: (image size, batch size) pairs; the first is also the one of the options and profiles. peer_sides:
    open_clip's image side where its patch does not divide ours. peer: changes of open_clip's config. Steps timed:
    `eager_steps`, `compiled_steps`, `peer_steps`, `plain_steps`. smoke: pairs of the small checks. exact: pairs of the
    large group, and of a piece of it. losses: pairs of the loss alone. rows: of the store. features: batch sizes of the
    training on cached features. embedding: (image size, batch size) pairs, each embedded `embedding_batches` times.
    tokens: lengths at which attention is measured. matrix: (M, N, K) of the matrix products. copied: bytes copied.
    """

    sizes: Sizes
    trainings: tuple[tuple[int, int], ...]
    peer_sides: dict[int, int]
    eager_steps: int
    compiled_steps: int
    peer_steps: int
    plain_steps: int
    smoke: int
    exact: tuple[int, int]
    losses: tuple[int, ...]
    rows: int
    features: tuple[int, ...]
    embedding: tuple[tuple[int, int], ...]
    embedding_batches: int
    tokens: tuple[int, ...]
    matrix: tuple[tuple[int, int, int], ...]
    copied: int
    peer: dict[str, Any] = field(default_factory=dict)


FULL = Scale(
    BASE,
    trainings=((224, 256), (224, 64), (448, 64), (518, 64)),
    peer_sides={518: 512},
    eager_steps=15,
    compiled_steps=30,
    peer_steps=20,
    plain_steps=8,
    smoke=16,
    exact=(16384, 256),
    losses=(64, 1024, 16384),
    rows=8000,
    features=(64, 1024),
    embedding=((224, 256), (448, 128), (518, 64)),
    embedding_batches=12,
    tokens=(64, 257, 1025, 1370),
    matrix=((65792, 768, 768), (65792, 3072, 768), (65792, 768, 3072)),
    copied=2**28,
)
TINY_PEER = {
    "embed_dim": 192,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 192, "heads": 2, "layers": 1, "pool_type": "last"},
}
SMALLEST = Scale(
    TOY,
    trainings=((28, 4), (56, 4)),
    peer_sides={28: 32, 56: 32},
    eager_steps=2,
    compiled_steps=2,
    peer_steps=2,
    plain_steps=1,
    smoke=8,
    exact=(12, 4),
    losses=(4, 8),
    rows=16,
    features=(4,),
    embedding=((28, 4),),
    embedding_batches=2,
    tokens=(5,),
    matrix=((64, 32, 32),),
    copied=2**12,
    peer=TINY_PEER,
)
