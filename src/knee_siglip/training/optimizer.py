"""Frozen weights, and AdamW with its parameter groups."""

from torch import nn
from torch.optim import AdamW

from knee_siglip.core.errors import UsageError
from knee_siglip.encoders.adapters import add_adapters
from knee_siglip.encoders.protocols import Encoder
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params.sections import Freeze, FreezeParams, LoraParams, TrainParams


def freeze_towers(model: KneeRadDinoSigLIPModel, freeze: FreezeParams, lora: LoraParams | None = None) -> None:
    """Freeze weights: they take no gradient, no decay and no optimizer memory. `lora` adds adapters that do.

    A number n trains only the last n blocks and what follows them (final norm, the text tower's head); the embeddings
    stay frozen even where n is the number of blocks.

    Raises:
        UsageError: n is larger than the tower's number of blocks.
    """
    _freeze(model.vision, freeze.vision, lora or LoraParams(), "vision")
    _freeze(model.text, freeze.text, lora or LoraParams(), "text")


def _freeze(encoder: Encoder, frozen: Freeze, lora: LoraParams, name: str) -> None:
    blocks = len(encoder.blocks)
    if frozen == "lora":
        add_adapters(encoder, lora)
        return
    if not isinstance(frozen, int):
        encoder.model.requires_grad_(frozen == "none")
        return
    if frozen > blocks:
        raise UsageError(
            f"train.freeze.{name} = {frozen}: the {name} tower has {blocks} blocks; "
            f"give a number from 1 to {blocks} of last blocks to train, or none, all or lora"
        )
    depths = encoder.depths()
    for parameter_name, parameter in encoder.model.named_parameters():
        parameter.requires_grad_(depths[parameter_name] > blocks - frozen)


def build_optimizer(model: KneeRadDinoSigLIPModel, params: TrainParams) -> AdamW:
    """Fused AdamW over the trained parameters, with layer-wise learning rate decay.

    In a tower of L blocks, block i (1 to L) learns at `layer_decay ** (L + 1 - i)` times the tower's rate, the
    embeddings at `layer_decay ** (L + 1)`, what follows the blocks at 1: as in BEiT (Bao et al. 2021, arXiv:2106.08254;
    ELECTRA, Clark et al. 2020, arXiv:2003.10555, has one power more for each). What joins the towers learns at the full
    rate; it is in the first group, so that group's rate is `learning_rate` times the schedule.

    Weight decay acts on all tensors of two and more dimensions (matrices, and tables of tokens and positions), not on
    biases, norms, layer scales, logit scale and logit bias.

    Fused: one pass over the memory, and a step can be skipped on the device (`training/finite.py`).
    """
    factors = _rate_factors(model.vision, "vision_model", params.vision_learning_rate_scale, params.layer_decay)
    factors |= _rate_factors(model.text, "text_model", 1.0, params.layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():  # logit scale and logit bias come first
        if parameter.requires_grad:
            groups.setdefault((factors.get(name, 1.0), parameter.ndim >= 2), []).append(parameter)
    return AdamW(
        [
            {
                "params": members,
                "lr": params.learning_rate * factor,
                "weight_decay": params.weight_decay if is_matrix else 0.0,
            }
            for (factor, is_matrix), members in groups.items()
        ],
        fused=True,
    )


def _rate_factors(encoder: Encoder, prefix: str, scale: float, decay: float) -> dict[str, float]:
    """Factors of the learning rate by the model's parameter names."""
    above = len(encoder.blocks) + 1
    return {f"{prefix}.{name}": scale * decay ** (above - depth) for name, depth in encoder.depths().items()}
