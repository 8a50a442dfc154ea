"""open_clip's model, loss and training loop as its own `main` puts them together."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from peers import open_clip
from torch import nn
from torch.optim import AdamW


class OpenClipTraining:
    """Epochs of open_clip's `train_one_epoch` with SigLipLoss, AdamW and a clipped gradient norm.

    Args:
        model: of open_clip, with `output_dict`.
        precision: fp32, amp (fp16 with a scaler) or amp_bf16.
        flags: further ones of `python -m open_clip_train.main`.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, device: torch.device, precision: str, flags: Sequence[str] = ()
    ) -> None:
        chosen = ["--siglip", "--precision", precision, "--batch-size", str(batch_size), "--grad-clip-norm", "1.0"]
        self.args = open_clip("open_clip_train.params").parse_args([*chosen, "--skip-scheduler", *flags])
        self.args.device, self.args.distill, self.args.wandb = str(device), False, False
        open_clip("open_clip_train.distributed").init_distributed_device(self.args)
        self.model = model.to(device)
        parameters = list(model.parameters())
        # its main gives no decay to what has one dimension; neither do we
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": 0.01},
        ]
        self.optimizer = AdamW(groups, lr=1e-4)
        self.scaler = torch.amp.GradScaler(device.type) if precision == "amp" else None
        self.loss = open_clip().create_loss(self.args)
        self.epochs = 0
        logging.getLogger().setLevel(logging.WARNING)  # it logs to the root logger

    def epoch(self, data: Any) -> None:
        """Once through a `DataInfo` of open_clip_train.data."""
        open_clip("open_clip_train.train").train_one_epoch(
            self.model, {"train": data}, self.loss, self.epochs, self.optimizer, self.scaler, None, None, self.args
        )
        self.epochs += 1
