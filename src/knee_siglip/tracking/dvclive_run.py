"""DVCLive: the curves as `plots/metrics/<name>.tsv`, which `dvc plots` and VS Code show while training runs."""

import os
from collections.abc import Sequence

from knee_siglip.core.metrics_file import finite
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.tracking.backend import Point, by_step, grouped, points_of
from knee_siglip.tracking.runlog import Event

SPEED = "speed."


class DvcliveRun:
    """Writes under `folder`. Dots become folders (`train.loss` -> `train/loss.tsv`), as DVCLive's own names do."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.history: list[Point] = []
        self.reached: dict[str, int] = {}

    def open(self, start: Event, earlier: list[Event]) -> str:  # noqa: ARG002
        """Clear the folder and remember an interrupted run's curves: DVC deleted their files when the stage started."""
        os.environ["DVC_STUDIO_OFFLINE"] = "true"
        from dvclive.live import Live

        self.live = Live(dir=self.folder, save_dvc_exp=False, dvcyaml=None, report=None)
        self.history = points_of(earlier)
        return self.folder

    def metrics(self, points: Sequence[Point]) -> None:
        """Append to the curves, after what an interrupted run had logged up to the first of their steps.

        The curves are an out of the stage, and equal runs shall have equal outs: speeds stay out, and of two values for
        one step (a tenth step may end an epoch) the first counts, however many points come at once.
        """
        logged_again = {(point.key, point.step) for point in points}
        past = [
            point
            for point in self.history
            if points and point.step <= points[0].step and (point.key, point.step) not in logged_again
        ]
        self.history = [] if points else self.history
        kept = []
        for point in (*past, *points):
            if not point.key.startswith(SPEED) and point.step > self.reached.get(point.key, -1):
                self.reached[point.key] = point.step
                kept.append(point)
        for step, values in by_step(kept):
            self.live.step = step
            for key, value in values.items():
                self.live.log_metric(grouped(key), value)
        self._write_summary()

    def summary(self, points: Sequence[Point]) -> None:
        """Write final values, except speeds, into `metrics.json`; the curves stay."""
        for point in points:
            if not point.key.startswith(SPEED):
                self.live.step = point.step
                self.live.log_metric(grouped(point.key), point.value, plot=False)
        self._write_summary()

    def tags(self, values: dict[str, str]) -> None:
        """Nothing: the curves are of the model that lies beside them."""

    def artifact(self, event: Event) -> None:
        """Nothing: DVC itself versions the files of a stage."""

    def close(self, status: str, complete: bool) -> None:
        """Everything is written already. `Live.end` would only touch git and dvc.yaml."""

    def _write_summary(self) -> None:
        """Write `metrics.json` as strict JSON, in which nan and inf have no name; the curves hold them."""
        kept, self.live.summary = self.live.summary, nest(finite(flatten(self.live.summary)))
        self.live.make_summary()
        self.live.summary = kept
