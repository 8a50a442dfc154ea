"""The training loop. `Trainer.train_step` is the step of the paper; everything else serves it."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from knee_siglip.data.augmentation import augment
from knee_siglip.data.batches import Batch, PairDataset, epoch_order, split_groups
from knee_siglip.errors import UserError
from knee_siglip.metrics.retrieval import contrastive_accuracy, shuffled_batches
from knee_siglip.model.device import autocast_dtype
from knee_siglip.model.loss import sigmoid_loss
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.params import TrainParams
from knee_siglip.training.accumulation import LossAndAccuracy, Pairs, backward_pairs, encode_pairs
from knee_siglip.training.optimizer import build_optimizer, build_schedule

LOG_EVERY_STEPS = 10

Log = Callable[[dict[str, float], int], None]


@dataclass
class History:
    """What the run reached: one dict of dotted metrics per epoch, and the best one's number (from 1)."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    pairs_seen: int = 0


class Trainer:
    """Trains a model on pairs; deterministic in `seed` on one CPU.

    Args:
        model: on `device`.
        train_set, val_set: pairs of the splits.
        log: receives dotted metrics and the optimizer step they belong to.
        on_best: called with the epoch's metrics when the model is the best so far by `params.best_metric`.
    """

    def __init__(
        self,
        model: KneeRadDinoSigLIPModel,
        train_set: PairDataset,
        val_set: PairDataset,
        params: TrainParams,
        *,
        seed: int,
        device: torch.device,
        log: Log,
        on_best: Callable[[dict[str, float]], None],
    ) -> None:
        self.model, self.train_set, self.val_set, self.params = model, train_set, val_set, params
        self.seed, self.device, self.log, self.on_best = seed, device, log, on_best
        self.group_size = params.batch_size * params.gradient_accumulation_steps
        self.micro_batch_size = params.micro_batch_size or params.batch_size
        self.dtype = autocast_dtype(params.mixed_precision, device)
        self.optimizer = build_optimizer(model, params)
        self.steps_per_epoch = -(-len(train_set) // self.group_size)
        self.schedule = build_schedule(self.optimizer, params.epochs * self.steps_per_epoch, params.warmup_ratio)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step = 0

    def fit(self) -> History:
        """Train all epochs, validating after each."""
        history = History()
        best: tuple[float, float] | None = None
        started = time.perf_counter()
        with self._progress() as progress:
            for epoch in range(self.params.epochs):
                metrics = self.train_epoch(epoch, progress) | self.validate()
                self.log(metrics, self.step)
                history.epochs.append(metrics)
                history.pairs_seen += len(self.train_set)
                score = self._score(metrics)
                if best is None or score > best:
                    best, history.best_epoch = score, epoch + 1
                    self.on_best(metrics)
        history.seconds = time.perf_counter() - started
        return history

    def train_epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        """Every training pair once, in an order of this epoch's own; returns the means over its steps."""
        self.model.train()
        bar = progress.add_task(f"epoch {epoch + 1}/{self.params.epochs}", total=self.steps_per_epoch, figures="")
        losses, accuracies = [], []
        for indices in split_groups(epoch_order(len(self.train_set), self.seed, epoch), self.group_size):
            learning_rate = float(self.schedule.get_last_lr()[-1])
            result = self.train_step(self.train_set.batch(indices, self.device))
            losses.append(result.loss.item())
            accuracies.append(result.accuracy.item())
            if self.step % LOG_EVERY_STEPS == 0:
                self.log({"train.step_loss": losses[-1], "learning_rate": learning_rate}, self.step)
            figures = f"loss {losses[-1]:.3f}  accuracy {accuracies[-1]:.2f}  lr {learning_rate:.1e}"
            progress.update(bar, advance=1, figures=figures)
        return {
            "train.loss": float(np.mean(losses)),
            "train.contrastive_accuracy": float(np.mean(accuracies)),
            "learning_rate": learning_rate,
            "logit_scale": self.model.logit_scale.exp().item(),
            "logit_bias": self.model.logit_bias.item(),
            "epoch": epoch + 1,
        }

    def train_step(self, batch: Batch) -> LossAndAccuracy:
        """One optimizer step on one contrastive batch, however many pieces it is encoded in."""
        pairs = Pairs(self._augment(batch.pixels), batch.input_ids, batch.text_ids)
        result = backward_pairs(
            self.model,
            pairs,
            self.micro_batch_size,
            dtype=self.dtype,
            multi_positive=self.params.multi_positive,
            scale=self.scaler.scale,
        )
        self.scaler.unscale_(self.optimizer)
        gradient_norm = self._clip()
        self._require_finite(result.loss, gradient_norm, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step += 1
        return result

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and contrastive accuracy of the validation pairs, in the evaluation's batches of 64.

        They do not follow `batch_size`, so that runs of different batch sizes compare.
        """
        self.model.eval()
        image_embeds, text_embeds = self._embed(self.val_set)
        text_ids = self.val_set.text_ids
        scale, bias = self.model.logit_scale.exp().cpu(), self.model.logit_bias.cpu()
        losses = [
            sigmoid_loss(image_embeds[rows], text_embeds[rows], scale, bias, text_ids[rows]).item()
            for rows in shuffled_batches(len(text_ids))
        ]
        accuracy = contrastive_accuracy(image_embeds.numpy(), text_embeds.numpy(), text_ids.numpy())
        return {"val.loss": float(np.mean(losses)), "val.contrastive_accuracy": accuracy}

    def _embed(self, pairs: PairDataset) -> tuple[Tensor, Tensor]:
        """(N, D) image and text embeddings on the CPU, float32."""
        images, texts = [], []
        for indices in split_groups(np.arange(len(pairs)), self.micro_batch_size):
            batch = pairs.batch(indices, self.device)
            whole = Pairs(batch.pixels, batch.input_ids, batch.text_ids)
            image_embeds, text_embeds = encode_pairs(self.model, whole, slice(None), self.dtype)
            images.append(image_embeds.cpu())
            texts.append(text_embeds.cpu())
        return torch.cat(images), torch.cat(texts)

    def _augment(self, pixels: Tensor) -> Tensor:
        seed = np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0]
        return augment(pixels, self.params.augment, torch.Generator().manual_seed(int(seed)))

    def _clip(self) -> Tensor:
        """() norm of all gradients before clipping."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        limit = float("inf") if self.params.max_grad_norm is None else self.params.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(trained, limit)

    def _require_finite(self, loss: Tensor, gradient_norm: Tensor, batch: Batch) -> None:
        # fp16 overflows are expected: the scaler skips such a step and lowers its scale
        finite = torch.isfinite(loss) if self.scaler.is_enabled() else torch.isfinite(loss + gradient_norm)
        if not finite:
            rows = ", ".join(str(row) for row in batch.rows[:8])
            raise UserError(
                f"step {self.step}: loss {loss.item()}, gradient norm {gradient_norm.item()}: training diverged before "
                f"this update; lower train.learning_rate or raise train.warmup_ratio (manifest rows {rows}, ...)"
            )

    def _score(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Larger is better; equal accuracies are told apart by the loss."""
        loss = -metrics["val.loss"]
        return (loss, loss) if self.params.best_metric == "val.loss" else (metrics["val.contrastive_accuracy"], loss)

    def _progress(self) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
        return Progress(TextColumn("{task.description}"), *columns)
