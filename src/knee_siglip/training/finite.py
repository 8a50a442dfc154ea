"""Steps whose loss or gradients are not finite: left out without a wait, counted, and soon the end of the run.

Nothing is replaced by a number. A skipped step changes no weight and no moment; after a few of them the run stops and
a file says which images they held.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from knee_siglip.core.errors import UserError

logger = logging.getLogger(__name__)

Describe = Callable[[np.ndarray], list[dict[str, Any]]]

NAMED = 4
"""Images that a message names; the dump names all."""


@dataclass(frozen=True)
class StepRecord:
    """What one step came to, in the whole group.

    `skipped`: loss or gradient norm was not finite and no weight was changed. `overflow`: so it was, but only because
    the fp16 loss scale was too high, which is expected and counts against nobody.
    """

    step: int
    loss: float
    accuracy: float
    gradient_norm: float
    skipped: bool
    overflow: bool


@dataclass(frozen=True)
class SkippedStep:
    """A step that counts. rows: (B,) manifest rows of its whole group."""

    step: int
    loss: float
    gradient_norm: float
    rows: np.ndarray


@dataclass(frozen=True)
class _Pending:
    """A step whose values are still on the device: loss, accuracy, gradient norm, found_inf, loss scale, all ()."""

    step: int
    rows: np.ndarray
    values: tuple[Tensor, ...]


class FiniteGuard:
    """Skips what is not finite, on the device, and stops the run when that happens too often.

    Each step, before the update and without waiting for the device:

        optimizer.found_inf = guard.check(loss, gradient_norm)
        optimizer.step()            # fused AdamW leaves everything as it was where found_inf is 1
        guard.record(step, rows, loss, accuracy, gradient_norm, optimizer.found_inf)

    Every few steps, and before the run's state is saved, `flush` waits once and tells what has happened. Under fp16 the
    same, with `scaler.unscale_(optimizer)` before and `scaler.update()` after, but not `scaler.step`, which puts the
    scaler's own found_inf in place of this one.

    Args:
        max_skipped: steps that may be skipped in the whole run, its resumed parts included: a damaged image comes back
            every epoch and shall not be skipped for ever. 0 stops at the first.
        dump: where the file is written that names the images; None on all ranks but one.
        describe: manifest rows (B,) to B dicts, such as row, image_id, img_path and text.
    """

    def __init__(self, max_skipped: int, dump: Path | None, describe: Describe) -> None:
        self.max_skipped, self.dump, self.describe = max_skipped, dump, describe
        self.skipped: list[SkippedStep] = []
        self._pending: list[_Pending] = []

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

        loss_scale: fp16's factor at this step, before the scaler's update, from `scaler.scale` of a one. Above 1, a
        finite loss with gradients that are not is an expected overflow: the scaler will lower its factor.
        """
        scale = torch.ones_like(found_inf) if loss_scale is None else loss_scale
        values = (loss, accuracy, gradient_norm, found_inf, scale)
        self._pending.append(_Pending(step, rows, tuple(value.detach() for value in values)))

    def flush(self) -> list[StepRecord]:
        """The steps since the last call, oldest first; one transfer from the device for all of them.

        Raises:
            UserError: more than `max_skipped` steps were skipped; the dump is written.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return []
        # float64 holds the values of any precision
        values = torch.stack([value.to(torch.float64) for kept in pending for value in kept.values])
        by_step = values.view(len(pending), -1).tolist()
        records = [_record(kept.step, *row) for kept, row in zip(pending, by_step, strict=True)]
        for kept, record in zip(pending, records, strict=True):
            if record.skipped and not record.overflow:
                self._count(SkippedStep(record.step, record.loss, record.gradient_norm, kept.rows))
        return records

    def state_dict(self) -> dict[str, Any]:
        """The steps skipped so far, in types that load with `weights_only`; `flush` must come before."""
        assert not self._pending, "flush before the state is saved"
        rows = [torch.from_numpy(np.array(skipped.rows, dtype=np.int64)) for skipped in self.skipped]
        figures = [(skipped.step, skipped.loss, skipped.gradient_norm) for skipped in self.skipped]
        return {"figures": figures, "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        self._pending = []
        self.skipped = [
            SkippedStep(step, loss, gradient_norm, rows.numpy())
            for (step, loss, gradient_norm), rows in zip(state["figures"], state["rows"], strict=True)
        ]

    def _count(self, skipped: SkippedStep) -> None:
        self.skipped.append(skipped)
        what = f"step {skipped.step}: loss {skipped.loss}, gradient norm {skipped.gradient_norm}"
        if len(self.skipped) <= self.max_skipped:
            logger.warning(
                "%s: not finite, so no weight was changed; skipped step %d of at most %d; its first images: %s",
                what,
                len(self.skipped),
                self.max_skipped,
                self._first_images(skipped.rows),
            )
            return
        self._write_dump()
        where = f"; {self.dump} names the images of all skipped steps" if self.dump else ""
        raise UserError(
            f"{what}: training diverged before this update; steps of the run that were not finite: "
            f"{len(self.skipped)} (train.max_skipped_steps = {self.max_skipped}){where}; lower train.learning_rate, "
            f"raise train.warmup_ratio, or look at the images named (first: {self._first_images(skipped.rows)})"
        )

    def _first_images(self, rows: np.ndarray) -> str:
        named = [f"{image.get('img_path')} (row {image.get('row')})" for image in self.describe(rows[:NAMED])]
        return ", ".join(named) + (", ..." if len(rows) > NAMED else "")

    def _write_dump(self) -> None:
        if self.dump is None:
            return
        steps = [
            asdict(skipped)
            | {"loss": _plain(skipped.loss), "gradient_norm": _plain(skipped.gradient_norm)}
            | {"rows": np.asarray(skipped.rows).tolist(), "images": self.describe(skipped.rows)}
            for skipped in self.skipped
        ]
        self.dump.parent.mkdir(parents=True, exist_ok=True)
        content = {"max_skipped_steps": self.max_skipped, "skipped": steps}
        self.dump.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def _record(
    step: int, loss: float, accuracy: float, gradient_norm: float, found_inf: float, loss_scale: float
) -> StepRecord:
    skipped = found_inf > 0
    overflow = skipped and math.isfinite(loss) and loss_scale > 1
    return StepRecord(step, loss, accuracy, gradient_norm, skipped, overflow)


def _plain(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
