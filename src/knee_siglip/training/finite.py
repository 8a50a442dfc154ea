"""Steps whose loss or gradients are not finite: skipped without waiting for the device, and counted.

No value is replaced. A skipped step changes no weight and no moment; after a few of them the run stops, and a file
names their images.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import write_json

logger = logging.getLogger(__name__)

Describe = Callable[[np.ndarray], list[dict[str, Any]]]

NAMED = 4
"""Images named in a message; the dump names all."""


@dataclass(frozen=True)
class StepRecord:
    """Metrics of one step over its whole group.

    `skipped`: loss or gradient norm was not finite and no weight was changed. `overflow`: skipped only because the fp16
    loss scale was too high, which is expected and does not count towards the limit.
    """

    step: int
    loss: float
    accuracy: float
    gradient_norm: float
    skipped: bool
    overflow: bool


@dataclass(frozen=True)
class SkippedStep:
    """A skipped step that counts towards the limit. rows: (B,) manifest rows of its whole group."""

    step: int
    loss: float
    gradient_norm: float
    rows: np.ndarray


@dataclass(frozen=True)
class _Transfer:
    """Values (N, 5) of N steps on their way to the host; `arrived` is None where they are there."""

    steps: list[tuple[int, np.ndarray]]  # number, and rows of the group
    values: Tensor
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Skips steps that are not finite, on the device, and stops the run when there are too many.

    Each step, before the update and without waiting for the device:

        optimizer.found_inf = guard.check(loss, gradient_norm)
        optimizer.step()            # fused AdamW leaves everything as it was where found_inf is 1
        guard.record(step, rows, loss, accuracy, gradient_norm, optimizer.found_inf)

    Every few steps `poll` reports, a call later on a GPU, so that neither waits for the other; `flush` waits and
    reports everything, at the end of a round and before the run's state is saved. Under fp16 add
    `scaler.unscale_(optimizer)` before and `scaler.update()` after, but not `scaler.step`, which would overwrite
    found_inf with the scaler's own.

    Args:
        max_skipped: steps that may be skipped in the whole run, its resumed parts included: a damaged image comes back
            every epoch and must not be skipped for ever. 0 stops at the first.
        dump: file that names the images; None on all ranks but one.
        describe: manifest rows (B,) to B dicts, such as row, image_id, img_path and text.
    """

    def __init__(self, max_skipped: int, dump: Path | None, describe: Describe) -> None:
        self.max_skipped, self.dump, self.describe = max_skipped, dump, describe
        self.skipped: list[SkippedStep] = []
        self._pending: list[tuple[int, np.ndarray, Tensor]] = []  # step, rows, its values on the device
        self._sent: list[_Transfer] = []

    @staticmethod
    def check(loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """() loss and () gradient norm to () float32 on their device: 1 where either is not finite, else 0."""
        finite = torch.isfinite(loss.detach()) & torch.isfinite(gradient_norm.detach())
        return (~finite).to(torch.float32)

    def record(
        self,
        step: int,
        rows: np.ndarray,
        loss: Tensor,
        accuracy: Tensor,
        gradient_norm: Tensor,
        found_inf: Tensor,
        loss_scale: Tensor | None = None,
    ) -> None:
        """Keep a step's values, all (), on the device until `flush`; rows: (B,) manifest rows of the whole group.

        loss_scale: fp16's factor at this step, before the scaler's update: `scaler.scale` of a one. Above 1, a finite
        loss with gradients that are not finite is an expected overflow: the scaler will lower its factor.
        """
        scale = torch.ones_like(found_inf) if loss_scale is None else loss_scale
        values = (loss, accuracy, gradient_norm, found_inf, scale)
        # float64 holds the values of any precision
        self._pending.append((step, rows, torch.stack([value.detach().to(torch.float64) for value in values])))

    def poll(self) -> list[StepRecord]:
        """The steps before the previous call, oldest first, and those since where that needs no wait: on a CPU.

        A device that the host waits for has nothing to do until the host has prepared its next step.

        Raises:
            UserError: see `flush`.
        """
        count = len(self._sent)
        self._send()
        return self._read(len(self._sent) if all(sent.arrived is None for sent in self._sent) else count)

    def flush(self) -> list[StepRecord]:
        """The steps that were not reported yet, oldest first; waits for the device.

        Raises:
            UserError: more than `max_skipped` steps were skipped; the dump is written.
        """
        self._send()
        return self._read(len(self._sent))

    def _send(self) -> None:
        """Start the transfer of the pending steps' values."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        values, arrived = _to_host(torch.stack([values for _, _, values in pending]))
        self._sent.append(_Transfer([(step, rows) for step, rows, _ in pending], values, arrived))

    def _read(self, count: int) -> list[StepRecord]:
        """Records of the first transfers."""
        read, self._sent = self._sent[:count], self._sent[count:]
        records = []
        for transfer in read:
            if transfer.arrived is not None:
                transfer.arrived.synchronize()
            for (step, rows), values in zip(transfer.steps, transfer.values.tolist(), strict=True):
                loss, accuracy, norm, found_inf, loss_scale = values
                skipped = found_inf > 0
                overflow = skipped and math.isfinite(loss) and loss_scale > 1
                records.append(StepRecord(step, loss, accuracy, norm, skipped, overflow))
                if skipped and not overflow:
                    self._count(SkippedStep(step, loss, norm, rows))
        return records

    def state_dict(self) -> dict[str, Any]:
        """The steps skipped so far, in types that load with `weights_only`; call `flush` before."""
        assert not [*self._pending, *self._sent], "flush before the state is saved"
        rows = [torch.from_numpy(np.array(skipped.rows, dtype=np.int64)) for skipped in self.skipped]
        figures = [(skipped.step, skipped.loss, skipped.gradient_norm) for skipped in self.skipped]
        return {"figures": figures, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._pending, self._sent = [], []
        self.skipped = [
            SkippedStep(step, loss, gradient_norm, rows.numpy())
            for (step, loss, gradient_norm), rows in zip(state["figures"], state["rows"], strict=True)
        ]

    def _count(self, skipped: SkippedStep) -> None:
        self.skipped.append(skipped)
        where = f"step {skipped.step}: loss {skipped.loss}, gradient norm {skipped.gradient_norm}"
        if len(self.skipped) <= self.max_skipped:
            logger.warning(
                "%s: not finite, so no weight was changed; skipped step %d of at most %d; its first images: %s",
                where,
                len(self.skipped),
                self.max_skipped,
                self._first_images(skipped.rows),
            )
            return
        dumped = ""
        if self.dump:
            self._write_dump(self.dump)
            dumped = f"; {self.dump} names the images of all skipped steps"
        raise UserError(
            f"{where}: training diverged before this update; steps of the run that were not finite: "
            f"{len(self.skipped)} (train.max_skipped_steps = {self.max_skipped}){dumped}; lower train.learning_rate, "
            f"raise train.warmup_ratio, or look at the images named (first: {self._first_images(skipped.rows)})"
        )

    def _first_images(self, rows: np.ndarray) -> str:
        named = [f"{image.get('img_path')} (row {image.get('row')})" for image in self.describe(rows[:NAMED])]
        return ", ".join(named) + (", ..." if len(rows) > NAMED else "")

    def _write_dump(self, path: Path) -> None:
        steps = [
            {
                "step": skipped.step,
                "loss": _plain(skipped.loss),
                "gradient_norm": _plain(skipped.gradient_norm),
                "rows": skipped.rows.tolist(),
                "images": self.describe(skipped.rows),
            }
            for skipped in self.skipped
        ]
        write_json(path, {"max_skipped_steps": self.max_skipped, "skipped": steps})


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Values on the host, and the event after which they are there if they come from a GPU."""
    if not values.is_cuda:
        return values, None
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived


def _plain(value: float) -> float | str:
    """Infinities and NaN as strings, since JSON has no such numbers."""
    return value if math.isfinite(value) else str(value)
