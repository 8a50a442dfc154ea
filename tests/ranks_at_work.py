"""What each process of test_distributed.py does. A module of its own: such a process imports it by name."""

import os
from pathlib import Path

import numpy as np
import torch

from knee_siglip.params.sections import AugmentParams, FreezeParams, LoraParams, TrainParams
from knee_siglip.training import contrastive, distributed
from knee_siglip.training.distributed import Ranks, open_ranks
from knee_siglip.training.encoder import PairEncoder
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.optimizer import freeze_towers
from knee_siglip.training.resume import share_state
from knee_siglip.training.trainer import Trainer
from toys import add_gradients, local_batch, toy_model, toy_pairs

FULL = [(3, "first pass"), (100, "first pass"), (3, "second pass"), (3, "backward"), (100, "backward")]
"""Size of the pieces, and where memory ends."""


def group_gradients(
    ranks: Ranks,
    count: int,
    micro_batch_size: int,
    exchange: str,
    multi_positive: bool = True,
    dtype: torch.dtype = torch.float64,
    full: str = "nowhere",
) -> dict:
    """Loss, accuracy and gradients of one group of `count` pairs with dropout.

    exchange: of the texts. full: where the last rank's memory is full at first.
    """
    model = toy_model(dropout=0.2, drop_path=0.2).to(dtype).train()
    pairs = toy_pairs(count, studies=True)
    encoder = PairEncoder(model, None, AugmentParams())
    happened = fill_memory(encoder, full if ranks.rank == ranks.size - 1 else "nowhere")
    contrastive.GATHER_BELOW = {"ring": 0, "gathered": 1024}[exchange]
    loss, accuracy = add_gradients(encoder, local_batch(pairs, 3, ranks), micro_batch_size, ranks, multi_positive)
    assert happened or full == "nowhere" or ranks.rank < ranks.size - 1
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return found | {"loss": loss, "accuracy": accuracy}


def fill_memory(encoder: PairEncoder, where: str) -> list[str]:
    """Stands in for a GPU: the first pass, the second or the way back ends in the middle, once.

    Returns:
        Where it has happened so far.
    """
    happened: list[str] = []
    error = torch.OutOfMemoryError("CUDA out of memory")
    if where == "backward":
        error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def fail(*_: object) -> None:
        if not happened and (where != "second pass" or torch.is_grad_enabled()):
            happened.append(where)
            raise error

    if where == "backward":
        # the text tower's gradients come after the vision tower's, which are on their way by then
        encoder.model.text_model.get_parameter("encoder.layers.0.self_attn.q_proj.weight").register_hook(fail)
    elif where != "nowhere":
        encoder.register_forward_hook(fail)
    return happened


def train(ranks: Ranks, freeze: FreezeParams) -> dict:
    """Weights and history after three epochs of groups of 8 with a last one of 4, accumulated, averaged, in float64."""
    model = toy_model(dropout=0.1)
    freeze_towers(model, freeze, LoraParams(rank=4, dropout=0.2))
    model.double()
    params = TrainParams(
        batch_size=4, gradient_accumulation_steps=2, micro_batch_size=3, epochs=3, learning_rate=5e-3, ema_decay=0.9
    )
    trainer = Trainer(
        model,
        toy_pairs(28, studies=True),
        toy_pairs(13, seed=5, studies=True),
        params,
        seed=0,
        device=torch.device("cpu"),
        log=lambda values, step: None,
        on_best=lambda metrics: None,
        guard=FiniteGuard(0, None, lambda rows: [{} for _ in rows]),
        ranks=ranks,
    )
    history = trainer.fit()
    return {"weights": model.state_dict(), "epochs": history.rounds, "best_epoch": history.best_round}


def work(out: Path, told: Path, environment: dict[str, str]) -> None:
    """Do it all, and agree about a flag that only one process knows. The last process writes what came out to `out`.

    told: file for stderr. environment: what torchrun tells this process; empty for one that is alone.
    """
    os.environ.update(environment)
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT), 2)
    torch.set_num_threads(1)
    distributed.BUCKET_BYTES = 4096  # several buckets for so small a model
    with open_ranks("cpu") as (ranks, _):
        found: dict = {
            (count, micro, exchange, multi): group_gradients(ranks, count, micro, exchange, multi)
            for count, micro in ((23, 3), (23, 100), (1, 3))
            for exchange in ("ring", "gathered")
            for multi in (True, False)
        }
        for exchange in ("ring", "gathered"):
            found["float32", exchange] = group_gradients(ranks, 23, 3, exchange, dtype=torch.float32)
        for micro, full in FULL:
            found["full", micro, full] = group_gradients(ranks, 23, micro, "gathered", full=full)
        found["training"] = train(ranks, FreezeParams())
        found["adapters"] = train(ranks, FreezeParams(vision="lora", text="lora"))
        found["flags"] = [ranks.any(ranks.rank == 0), ranks.any(ranks.rank == ranks.size - 1), ranks.any(False)]
        found["rows"] = ranks.gather(torch.from_numpy(ranks.local_part(np.arange(7))).unsqueeze(1), 7)
        state = {
            "step": 3,
            "layers": [torch.arange(6.0).reshape(2, 3).T, torch.tensor(True)],
            "none": (None, torch.ones(0)),
        }
        found["state"] = share_state(state if ranks.is_first else None, ranks)
        found["no state"] = share_state(None, ranks)
        found["size"] = ranks.size
        if ranks.rank == ranks.size - 1:
            torch.save(found, out)
