"""The training loop. `Trainer.train_step` is the step of the paper."""

import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from knee_siglip.core.errors import Interrupted
from knee_siglip.model.device import autocast_dtype
from knee_siglip.model.modeling import KneeRadDinoSigLIPModel
from knee_siglip.pairs.batches import Batch, PairDataset, split_groups
from knee_siglip.pairs.prefetch import prefetch_batches
from knee_siglip.params.sections import TrainParams
from knee_siglip.training.acceleration import accelerate
from knee_siglip.training.accumulation import GradientCache
from knee_siglip.training.contrastive import contrastive_loss
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.ema import Ema
from knee_siglip.training.encoder import LocalBatch, PairEncoder
from knee_siglip.training.finite import FiniteGuard, StepRecord
from knee_siglip.training.graphs import Graphs
from knee_siglip.training.interruption import StopRequest
from knee_siglip.training.monitoring.history import History
from knee_siglip.training.monitoring.signs import Monitor
from knee_siglip.training.monitoring.val_metrics import measure_pairs
from knee_siglip.training.optimizer import build_optimizer
from knee_siglip.training.resume import StateSaver
from knee_siglip.training.schedule import Budget, build_schedule
from knee_siglip.training.throughput import Throughput, pair_flops, peak_flops, step_flops
from knee_siglip.training.unlabelled.warm_up import warm_up

LOG_EVERY_STEPS = 10
"""How often metrics are shown: on a GPU those of so many steps ago, which the host need not wait for."""

Log = Callable[[dict[str, float], int], None]


class Trainer:
    """Trains a model on pairs; deterministic in `seed` on one CPU.

    Args:
        model: on `device`, already frozen as `params.freeze` says.
        train_set, val_set: pairs of the splits.
        log: receives dotted metrics and their optimizer step.
        on_best: called with the round's metrics when the weights, which the model then holds, are the best so far by
            `params.best_metric`.
        guard: handles steps that are not finite.
        saver: saves the state; None saves nothing.
        stop: set by a signal.
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
        guard: FiniteGuard,
        ranks: Ranks | None = None,
        saver: StateSaver | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        self.model, self.train_set, self.val_set, self.params = model, train_set, val_set, params
        self.seed, self.device, self.log, self.on_best, self.guard = seed, device, log, on_best, guard
        self.ranks, self.saver, self.stop = ranks or Ranks(), saver, stop or StopRequest()
        self.group_size = params.batch_size * params.gradient_accumulation_steps
        self.budget = Budget.of(params, len(train_set))
        fixed = params.micro_batch_size
        micro_batch_size = math.ceil(params.batch_size / self.ranks.size) if fixed == "auto" else fixed
        self.dtype = autocast_dtype(params.mixed_precision, device)
        accelerate(model, params, device)
        self.encoder = PairEncoder(model, self.dtype, params.augment, train_set.text_versions)
        graphs = params.cuda_graphs and device.type == "cuda" and self.ranks.size == 1
        self.gradient_cache = GradientCache(self.encoder, self.ranks, micro_batch_size, graphs)
        self.loss = Graphs(contrastive_loss, [], graphs)
        self.optimizer = build_optimizer(model, params)
        self.schedule = build_schedule(self.optimizer, self.budget.total_steps, params.warmup_ratio, params.schedule)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = None if params.ema_decay is None else Ema(model, params.ema_decay)
        self.history = History(params.best_metric, len(val_set))
        self.monitor = Monitor.of(train_set, val_set, params, self.budget, seed)
        peak = peak_flops(device, self.dtype, params.tf32)
        self.throughput = Throughput(peak and peak * self.ranks.size)
        self.step = 0
        self.learning_rate = 0.0
        self.records: list[StepRecord] = []  # of this round
        self._rates: dict[int, float] = {}  # by step, since the last flush
        self._pair_flops: tuple[int, int] | None = None

    def fit(self) -> History:
        """Train all rounds, or until `patience` rounds bring no improvement, validating after each.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            UserError: training diverged, or not even one pair fits into the device's memory.
        """
        if self.step == 0 and self.params.warm_up.epochs:
            self._warm_up()
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
        with Progress(TextColumn("{task.description}"), *columns, disable=not self.ranks.is_first) as progress:
            while not self._is_over():
                metrics = self.train_round(progress) | self.validate()
                self.log(metrics, self.step)
                self.log({f"speed.{name}": value for name, value in self.throughput.metrics().items()}, self.step)
                self.records = []
                if self.history.add(metrics):
                    with self.chosen_weights():
                        self.on_best(metrics)
                self.monitor.watch(self.history)
                self._save_or_stop()
        return self.history

    def train_round(self, progress: Progress) -> dict[str, float]:
        """Train up to the next validation; returns the means over the round's steps."""
        budget, number = self.budget, len(self.history.rounds) + 1
        end = budget.end_of_round(number)
        title = f"epoch {budget.epochs_at(end):.3g}/{budget.epochs_at(budget.total_steps):.3g}"
        start = budget.end_of_round(number - 1)
        bar = progress.add_task(title, total=end - start, completed=self.step - start, shown="")
        groups = self._groups(end)
        parts = [self.ranks.local_part(group) for group in groups]
        batches = prefetch_batches(self.train_set.batch, parts, self.device, self.params.prefetch, self.throughput.wait)
        self.encoder.train()
        self.throughput.start()
        with closing(batches):
            for group, batch in zip(groups, batches, strict=True):
                self.train_step(batch, group)
                self.throughput.count(len(group), self._flops(batch, group))
                if self.step % LOG_EVERY_STEPS == 0:
                    self._show(progress, bar)
                self._save_or_stop()
        self._flush()
        progress.update(bar, completed=end - start)
        return self._round_means() | {
            "learning_rate": self.learning_rate,
            "logit_scale": self.model.logit_scale.exp().item(),
            "logit_bias": self.model.logit_bias.item(),
            "epoch": budget.epochs_at(end),
        }

    def _groups(self, end: int) -> list[np.ndarray]:
        """The pairs of each step from here to step `end`: epoch by epoch, each in its own order."""
        per_epoch = self.budget.steps_per_epoch
        first, last = self.step // per_epoch, math.ceil(end / per_epoch)
        orders = (self.train_set.epoch(self.seed, epoch) for epoch in range(first, last))
        groups = [group for order in orders for group in split_groups(order, self.group_size)]
        done = self.step - first * per_epoch
        return groups[done : done + end - self.step]

    def train_step(self, batch: Batch, group: np.ndarray) -> None:
        """One optimizer step on one contrastive group; `batch` is the part that this process encodes."""
        # Schedule
        self.learning_rate = self._rates[self.step] = float(self.schedule.get_last_lr()[0])

        # Encode: in pieces that fit into memory
        local = LocalBatch(batch, len(group), math.ceil(len(group) / self.ranks.size), self.seed, self.step)
        encoded = self.gradient_cache.encode(local)

        # Loss: over every image with every text of the group, whatever the pieces and the ranks
        meeting = (
            encoded.image_embeds,
            encoded.text_embeds,
            self.model.logit_scale.exp(),
            self.model.logit_bias,
            local.positive_ids(self.params.multi_positive),
            batch.match_ids,
        )
        is_whole = self.ranks.size == 1 and encoded.graph is not None  # here, and in one piece
        loss, accuracy = self.loss(*meeting) if is_whole else contrastive_loss(*meeting, len(group), self.ranks)

        # Backward: autograd stops at the embeddings, the cache propagates their gradients through the encoders
        self.scaler.scale(loss).backward()
        self.gradient_cache.backward(encoded)

        # Check: the true norm, so gradients lose the fp16 factor before they are clipped
        loss_scale = self.scaler.scale(torch.ones((), device=self.device))
        self.scaler.unscale_(self.optimizer)
        gradient_norm = self._clip()
        found_inf = self.guard.check(loss, gradient_norm)

        # Step: not by `scaler.step`, which waits for the device and checks only the gradients, not the loss. Fused
        # AdamW reads `found_inf` on the device; where it is 1, no weight and no moment changes.
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema:
            self.ema.update()

        # Log: values stay on the device until they are shown; the host waits at the end of a round alone
        rows = self.train_set.rows_of(group)
        self.guard.record(self.step, rows, loss, accuracy, gradient_norm, found_inf, loss_scale)
        self.step += 1

    def _warm_up(self) -> None:
        """Train the image encoder on the images alone. Its time is short: interrupted, it begins again."""

        def check_stop() -> None:
            if self.ranks.any(self.stop.signal is not None):
                number = self.stop.signal or signal.SIGTERM
                raise Interrupted(f"{number.name}: stopped during the warm-up, of which nothing is saved", number)

        warm_up(
            self.model,
            self.train_set.pixels,
            self.train_set.rows,
            self.params.warm_up,
            seed=self.seed,
            dtype=self.dtype,
            ranks=self.ranks,
            check_stop=check_stop,
        )
        if self.params.ema_decay is not None:
            self.ema = Ema(self.model, self.params.ema_decay)

    def validate(self) -> dict[str, float]:
        """`val.loss` and `val.contrastive_accuracy`, and `val_ema.*` with a moving average of the weights."""
        metrics = self._measure("val")
        if self.ema:
            with self.ema.applied():
                metrics |= self._measure("val_ema")
        return metrics

    def chosen_weights(self) -> AbstractContextManager[None]:
        """Context in which the model holds the weights that `best_metric` judges: its own, or their moving average."""
        if self.ema and self.params.best_metric.startswith("val_ema."):
            return self.ema.applied()
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, in types that load with `weights_only`."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "guard": self.guard.state_dict(),
            "history": self.history.state_dict(),
            "records": [astuple(record) for record in self.records],
            "speed": self.throughput.state_dict(),
            "micro_batch_size": self.gradient_cache.micro_batch_size,
            "learning_rate": self.learning_rate,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.step, self.learning_rate = state["step"], state["learning_rate"]
        self.gradient_cache.micro_batch_size = state["micro_batch_size"]
        self.throughput.load_state_dict(state["speed"])
        self.model.load_state_dict(state["model"])
        for name in ("optimizer", "schedule", "scaler", "guard", "history"):
            getattr(self, name).load_state_dict(state[name])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.records = [StepRecord(*record) for record in state["records"]]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _clip(self) -> Tensor:
        """() norm of all gradients before clipping."""
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        limit = float("inf") if self.params.max_grad_norm is None else self.params.max_grad_norm
        return torch.nn.utils.clip_grad_norm_(trained, limit)

    def _measure(self, prefix: str) -> dict[str, float]:
        metrics = measure_pairs(
            self.encoder,
            self.val_set,
            self.ranks,
            device=self.device,
            batch_size=self.gradient_cache.micro_batch_size,
            prefetch=self.params.prefetch,
        )
        return {f"{prefix}.{name}": value for name, value in metrics.items()}

    def _flops(self, batch: Batch, group: np.ndarray) -> int:
        texts = len(self.train_set.text_ids[torch.from_numpy(group)].unique())
        if self._pair_flops is None:  # all batches are of one image size
            cached = batch.pixels.ndim == 2
            self._pair_flops = pair_flops(self.model, 0 if cached else batch.pixels.shape[-1], cached)
        return step_flops(self._pair_flops, len(group), texts, self.model.text.width)

    def _flush(self) -> None:
        """Wait for the device and read the steps' metrics."""
        self.records += self.guard.flush()
        self._rates.clear()
        self.throughput.lap()

    def _show(self, progress: Progress, bar: TaskID) -> None:
        arrived = self.guard.poll()
        self.records += arrived
        if not arrived:
            return
        last = arrived[-1]
        rate = self._rates[last.step]
        metrics = {"train.step_loss": last.loss, "train.gradient_norm": last.gradient_norm, "learning_rate": rate}
        self.log(metrics, last.step + 1)
        shown = f"loss {last.loss:.3f}  accuracy {last.accuracy:.2f}  lr {rate:.1e}"
        done = self.step - self.budget.end_of_round(len(self.history.rounds))
        progress.update(bar, completed=done, shown=shown)

    def _round_means(self) -> dict[str, float]:
        """Means over the steps whose loss was finite, plus the number of skipped steps."""
        finite = [record for record in self.records if np.isfinite(record.loss)]
        return {
            "train.loss": float(np.mean([record.loss for record in finite])) if finite else float("nan"),
            "train.contrastive_accuracy": float(np.mean([record.accuracy for record in self.records])),
            "train.skipped_steps": sum(record.skipped for record in self.records),
        }

    def _is_over(self) -> bool:
        return len(self.history.rounds) >= self.budget.rounds or self.history.is_stale(self.params.patience)

    def _save_or_stop(self) -> None:
        """Save the state if it is due, or if a signal asks to stop; then end training.

        Not after the last round: from there nothing would be trained, so that curves and reports would stay empty.
        """
        if self._is_over():
            return
        asked = self.ranks.any(self.stop.signal is not None)
        if asked or self._save_is_due():
            self._flush()
            is_saved = self.saver is not None and self.saver.save(self.state_dict(), self.step, wait=asked)
            if asked:
                how = (
                    "saved its state; rerun the same command to resume" if self.ranks.any(is_saved) else "saved nothing"
                )
                number = self.stop.signal or signal.SIGTERM
                where = f"{number.name}: training stopped at step {self.step} of {self.budget.total_steps}"
                raise Interrupted(f"{where} and {how}", number)
            self.throughput.start()

    def _save_is_due(self) -> bool:
        every = self.params.save_every_steps
        if every and self.step % every == 0:
            return True
        # all processes must agree, which costs too much to ask at every step
        at_rest = self.step % LOG_EVERY_STEPS == 0 or self.step % self.budget.steps_per_round == 0
        return at_rest and self.ranks.any(self.saver is not None and self.saver.is_due)
