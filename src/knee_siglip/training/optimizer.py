"""AdamW and its learning-rate schedule."""

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params import FreezeParams, TrainParams


def freeze_towers(model: KneeRadDinoSigLIPModel, freeze: FreezeParams) -> None:
    """Keep the weights of the towers named; they take no gradient and no decay."""
    model.vision_model.requires_grad_(freeze.vision == "none")
    model.text_model.requires_grad_(freeze.text == "none")


def build_optimizer(model: KneeRadDinoSigLIPModel, params: TrainParams) -> AdamW:
    """AdamW over what is trained; weight decay acts on matrices, not on biases, norms, logit scale and logit bias."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("vision_model."), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return AdamW(
        [
            {
                "params": members,
                "lr": params.learning_rate * (params.vision_learning_rate_scale if is_vision else 1.0),
                "weight_decay": params.weight_decay if is_matrix else 0.0,
            }
            for (is_vision, is_matrix), members in groups.items()
        ]
    )


def build_schedule(optimizer: AdamW, total_steps: int, warmup_ratio: float) -> OneCycleLR:
    """One cycle over all optimizer steps: a warm-up of `warmup_ratio` of them, then cosine to nearly zero.

    Momentum is not cycled: AdamW's first beta stays what the papers used.
    """
    # OneCycleLR divides by zero where the warm-up is exactly one step, and one step is no warm-up.
    pct_start = warmup_ratio if warmup_ratio * total_steps > 1 + 1e-6 else 0.0
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=float(pct_start),
        cycle_momentum=False,
    )
