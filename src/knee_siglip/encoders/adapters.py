"""Low-rank adapters (LoRA) in a frozen encoder: W + (alpha / rank) B A, of which only A and B are trained.

Source: Hu et al. 2022 (arXiv:2106.09685), section 4.1. B starts at zero, so training starts from the encoder as it is.
The adapters are the library's (peft), which is imported only where they are used.
"""

from torch import Tensor, nn

from knee_siglip.encoders.protocols import Encoder
from knee_siglip.params.sections import LoraParams

ADAPTER = "default"
BASE = "base_layer"
"""peft's names: of the only adapter, and of the layer that it wraps."""


def add_adapters(encoder: Encoder, params: LoraParams) -> None:
    """Freeze an encoder and adapt every linear layer of its blocks, in place.

    All linear layers, not queries and values alone: at equal memory that is what matches full fine-tuning (Dettmers et
    al. 2023, arXiv:2305.14314, section 4). A is drawn from torch's global generator. peft's dropout modules become
    `SampleDropout` as the encoder's own do.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in encoder.blocks.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, lora_dropout=params.dropout, target_modules=linear, bias="none"
    )
    encoder.model.requires_grad_(False)
    inject_adapter_in_model(config, encoder.blocks, ADAPTER)


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Weights by the names of a model without adapters, with the adapters' products added; the model stays as it is."""
    weights = dict(model.state_dict())
    for name, layer in model.named_modules():
        if hasattr(layer, BASE):
            own = {key: weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
            start = f"{name}.{BASE}."
            weights |= {
                f"{name}.{key.removeprefix(start)}": value for key, value in own.items() if key.startswith(start)
            }
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + layer.get_delta_weight(ADAPTER)
    return weights
