"""python benchmarks/step_operators.py [--output FILE]

Operators of one bf16 training step of RAD-DINO and SigLIP (12 blocks each; narrow, since counts do not depend on the
width), with the residual stream in bf16 and as autocast alone has it: all that compute, and those that cast. On a GPU
each is at least one kernel, and the host starts them one by one where blocks are not compiled. It runs on a CPU in
seconds. That no operator makes the host wait is a test's business (tests/training/test_no_waits.py).

Prints target beside figure; exits 1 when one is missed.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from claims import Claim, conclude
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Dinov2Config, SiglipTextConfig

from knee_siglip.encoders import dinov2, siglip_text
from knee_siglip.model.modeling import KneeRadDinoSigLIPConfig, KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import PairDataset
from knee_siglip.params.sections import TrainParams
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.trainer import Trainer

aten = torch.ops.aten
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
PAIRS, WIDTH, SIZE = 4, 48, 224


class Count(TorchDispatchMode):
    """Operators that compute, and casts among them, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.casts = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operators += not function.is_view and function.overloadpacket.__name__ not in ALLOCATIONS
        self.casts += function is aten._to_copy.default and result.dtype != args[0].dtype
        return result


class Pixels:
    """Grey images of noise."""

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (len(rows), SIZE, SIZE), dtype=np.uint8)


def trainer() -> Trainer:
    """A trainer of both towers at their depth, in bf16."""
    torch.manual_seed(0)
    vision = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=12, num_attention_heads=12, image_size=518, patch_size=14,
        use_mask_token=False,
    )  # fmt: skip
    text = SiglipTextConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=64, pad_token_id=1, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    input_ids = torch.randint(2, 64, (PAIRS, 64))
    pairs = PairDataset(Pixels(), np.arange(PAIRS), input_ids, np.arange(PAIRS))
    return Trainer(
        KneeRadDinoSigLIPModel(KneeRadDinoSigLIPConfig(vision, text)),
        pairs,
        pairs,
        TrainParams(batch_size=PAIRS, mixed_precision="bf16", compile=False),
        seed=0,
        device=torch.device("cpu"),
        log=lambda *_: None,
        on_best=lambda _: None,
        guard=FiniteGuard(3, None, lambda _: []),
    )


@contextmanager
def autocast_alone() -> Iterator[None]:
    """The stream stays in the type of the embedded tokens."""

    def as_embedded(hidden: Tensor, _: Any) -> torch.dtype:
        return hidden.dtype

    with patch.object(dinov2, "stream_dtype", as_embedded), patch.object(siglip_text, "stream_dtype", as_embedded):
        yield


def count_step() -> Count:
    """Count the second step: the first also creates the optimizer's moments."""
    taken = trainer()
    group = np.arange(PAIRS)
    taken.train_step(taken.train_set.batch(group), group)
    batch = taken.train_set.batch(group)
    with Count() as count:
        taken.train_step(batch, group)
    return count


def main() -> None:
    """Count both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    stream = count_step()
    with autocast_alone():
        plain = count_step()
    for way, count in (("bf16 stream", stream), ("autocast alone", plain)):
        print(f"{way}: {count.operators} operators, {count.casts} casts")
    claims = [
        Claim("casts of a step with a bf16 stream", stream.casts, "<=", 40),
        Claim("operators with a bf16 stream / under autocast alone", stream.operators / plain.operators, "<=", 0.7),
    ]
    facts = {
        way: {"operators": count.operators, "casts": count.casts}
        for way, count in (("stream", stream), ("autocast", plain))
    }
    conclude(claims, facts, args.output, "torch", "transformers")


if __name__ == "__main__":
    main()
