"""The kinds of trials: what is done, and whether what the project then holds is what an undisturbed run leaves."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from . import faults
from .processes import AT_END, Ended, Process
from .project import SIZE, STAGES, Project, files_of, make_project

IDENTICAL, REFUSED, WRONG, TRACEBACK, HUNG = "identical", "refused", "wrong in silence", "traceback", "hung"
OUTCOMES = (IDENTICAL, REFUSED, WRONG, TRACEBACK, HUNG)

MODEL = "models/best_model.pt"
PACKED = "knees.tar"
LOG_BYTES = 20_000
"""What a stage says goes into a file, which a limit on files would cut too."""

ANSWERS = "answers"
"""Folder of what `knee-siglip infer` writes."""


@dataclass(frozen=True)
class Trial:
    """kind: the row of the table. case: what exactly was done. outcome: one of `OUTCOMES`. said: the last line."""

    kind: str
    case: str
    outcome: str
    said: str = ""


class Bench:
    """Finished and interrupted miniature projects; each trial has a copy.

    Args:
        folder: an empty one.
        stages: that take part, in order, with all before them that they read.
    """

    def __init__(self, folder: Path, stages: tuple[str, ...] = STAGES) -> None:
        self.folder, self.stages = folder, stages
        self.done = make_project(folder / "done")
        self.calls: dict[str, list[tuple[str, int]]] = {}
        for stage in stages:
            self._undisturbed(stage)
        self.expected = {stage: self.done.results(stage) for stage in stages}
        self._must(Process(self.done, "pack", command=_command("store", "pack", PACKED), in_dvc=False))
        self._must(Process(self.done, "ask", command=ask, in_dvc=False))
        self.answers = _digests(self.done.folder / ANSWERS)
        shutil.rmtree(self.done.folder / ANSWERS)
        self.rows = _stored_rows(self.done.folder / ".store")
        self.done.write_lock()
        self.training = self._interrupted("train", faults.at_call("replace", 12, faults.die))
        if "infer" in stages:
            self.inferring = self._interrupted("infer", _die_before_merging)

    def _undisturbed(self, stage: str) -> None:
        file = self.folder / f"calls-{stage}.json"
        ended = self._must(Process(self.done, stage, faults.count_calls(file, AT_END)))
        self.done.seconds[stage] = ended.seconds
        counts = json.loads(file.read_text())
        self.calls[stage] = [(name, count) for name, count in counts.items() if count]

    def _interrupted(self, stage: str, prepare: Callable[[], None]) -> Project:
        project = self.done.copy(self.folder / stage)
        project.remove_outs(stage)
        assert Process(project, stage, prepare).wait().code == -9
        return project

    @staticmethod
    def _must(process: Process) -> Ended:
        ended = process.wait()
        assert ended.code == 0, ended.said
        return ended

    def moment(self, stage: str, rng: Random) -> tuple[str, int]:
        """A system call that the stage does, and which of them."""
        call, count = rng.choice(self.calls[stage])
        return call, rng.randint(1, count)

    @contextmanager
    def copy(self, of: Project) -> Iterator[Project]:
        """A copy for one trial."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield of.copy(Path(folder) / "project")

    def judge(self, project: Project, stage: str, *runs: Ended) -> str:
        """The outcome of runs that should have made a stage's outs; see `OUTCOMES`."""
        if any(run.hung for run in runs):
            return HUNG
        if any("Traceback" in run.said for run in runs):
            return TRACEBACK
        if any(run.sentence for run in runs):
            return REFUSED
        return IDENTICAL if project.results(stage) == self.expected[stage] else WRONG


def kill(bench: Bench, rng: Random) -> Trial:
    """Kill a stage at a random or a named moment, then run it again, at once."""
    stage, whom = rng.choice(bench.stages), rng.choice(("group", "stage", "dvc"))
    with bench.copy(bench.done) as project:
        project.remove_outs(stage)
        if rng.random() < 0.5:
            call, number = bench.moment(stage, rng)
            first, moment = Process(project, stage, faults.at_call(call, number, faults.die)), f"{call} {number}"
            whom = "stage"
        else:
            seconds = rng.uniform(0, bench.done.seconds[stage])
            first, moment = Process(project, stage), f"{seconds:.2f} s"
            _sleep(seconds)
            first.kill(whom)
        second = Process(project, stage)  # beside what the first has left behind, if that still lives
        ended, before = second.wait(), first.wait()
        outcome = bench.judge(project, stage, ended) if not before.hung else HUNG
        return Trial(
            f"kill: {'process' if whom == 'stage' else whom}", f"{stage} at {moment}", outcome, ended.last_line
        )


def refuse(bench: Bench, rng: Random) -> Trial:
    """Let the disk refuse, then run the stage again where it does not."""
    stage = rng.choice(bench.stages)
    with bench.copy(bench.done) as project:
        longest = max(file.stat().st_size for name in project.outs[stage] for file in files_of(project.folder / name))
        project.remove_outs(stage)
        if rng.random() < 0.4:
            size = LOG_BYTES + int(longest * rng.random() ** 3)
            prepare, case, kind = faults.limit_files(size), f"files up to {size} bytes", "disk: size limit"
        else:
            number, (call, count) = rng.choice(faults.REFUSALS), bench.moment(stage, rng)
            prepare = faults.at_call(call, count, faults.refuse(number))
            case, kind = f"{os.strerror(number)} at {call} {count}", "disk: refused call"
        first = Process(project, stage, prepare).wait()
        refused = bench.judge(project, stage, first)
        project.remove_outs(stage)
        again = bench.judge(project, stage, Process(project, stage).wait())
        outcome = refused if again == IDENTICAL or refused in (TRACEBACK, HUNG) else WRONG
        return Trial(kind, f"{stage}: {case}", outcome, first.last_line)


def damage_input(bench: Bench, rng: Random) -> Trial:
    """Damage a file that a stage of DVC reads."""
    stage = rng.choice([stage for stage in bench.stages if stage not in ("sample", "backbones")])
    names = [name for name in bench.done.inputs[stage] if not name.startswith(("own", "params.yaml"))]
    with bench.copy(bench.done) as project:
        files = [file for name in names for file in files_of(project.folder / name)]
        if not files:
            return Trial("flip: inputs of stages", f"{stage} reads none", IDENTICAL)
        return _after_damage(bench, project, rng.choice(files), rng, stage, "flip: inputs of stages")


def damage_store(bench: Bench, rng: Random) -> Trial:
    """Damage the store under a stage that reads it."""
    stage = rng.choice([stage for stage in ("validate", "preprocess", "train", "evaluate") if stage in bench.stages])
    with bench.copy(bench.done) as project:
        folder, ending = rng.choice((("pixels", ".pixels"), ("pixels", ".ids"), ("pixels", ".json"), ("tracking", "")))
        if stage == "validate":
            folder, ending = "facts", ".parquet"
        files = [file for file in files_of(project.folder / ".store" / folder) if file.name.endswith(ending)]
        return _after_damage(bench, project, rng.choice(files), rng, stage, "flip: store")


def damage_state(bench: Bench, rng: Random) -> Trial:
    """Damage what an interrupted training goes on from."""
    with bench.copy(bench.training) as project:
        files = [file for file in files_of(project.folder / ".store/runs") if file.name != ".lock"]
        return _after_damage(bench, project, rng.choice(files), rng, "train", "flip: training state")


def damage_batch(bench: Bench, rng: Random) -> Trial:
    """Damage what an interrupted batch inference goes on from."""
    with bench.copy(bench.inferring) as project:
        files = [file for file in files_of(project.folder / "reports/inference") if file.stat().st_size]
        return _after_damage(bench, project, rng.choice(files), rng, "infer", "flip: interrupted inference")


def damage_image(bench: Bench, rng: Random) -> Trial:
    """Damage an image after its validation. An unreadable one is a row that says so."""
    stage = rng.choice([stage for stage in ("preprocess", "infer") if stage in bench.stages])
    with bench.copy(bench.done) as project:
        if stage == "preprocess":
            shutil.rmtree(project.folder / ".store/pixels")
        file = rng.choice(files_of(project.folder / "own/images"))
        trial = _after_damage(bench, project, file, rng, stage, "flip: images after validation")
        results = project.folder / "reports/inference/results.csv"
        if trial.outcome == WRONG and stage == "infer" and _only_named_rows_differ(results, bench, file.name):
            return Trial(trial.kind, trial.case, REFUSED, "its row says so")
        return trial


def damage_checkpoint(bench: Bench, rng: Random) -> Trial:
    """Damage a model that `knee-siglip infer` is asked to use, without DVC."""
    with bench.copy(bench.done) as project:
        case = faults.damage(project.folder / MODEL, rng)
        ended = Process(project, "ask", command=ask, in_dvc=False).wait()
        outcome = _judge(ended, lambda: _digests(project.folder / ANSWERS) == bench.answers)
        return Trial("flip: checkpoint", case, outcome, ended.last_line)


def damage_packed(bench: Bench, rng: Random) -> Trial:
    """Damage a packed store, then unpack it into an empty one."""
    with bench.copy(bench.done) as project:
        case = faults.damage(project.folder / PACKED, rng)
        shutil.rmtree(project.folder / ".store")
        unpack = _command("store", "unpack", PACKED)
        ended = Process(project, "unpack", command=unpack, in_dvc=False).wait()
        outcome = _judge(ended, lambda: _stored_rows(project.folder / ".store") == bench.rows)
        return Trial("flip: packed store", case, outcome, ended.last_line)


def two_at_once(bench: Bench, rng: Random) -> Trial:
    """Start a stage, or `knee-siglip infer`, twice."""
    stage = rng.choice((*bench.stages, "ask", "unpack"))
    with bench.copy(bench.done) as project:
        delay = rng.uniform(0, 0.3)
        if stage in bench.stages:
            project.remove_outs(stage)
            start = partial(Process, project, stage)
        else:
            command = ask if stage == "ask" else _command("store", "unpack", PACKED)
            if stage == "unpack":
                shutil.rmtree(project.folder / ".store")
            start = partial(Process, project, stage, command=command, in_dvc=False)
        first = start()
        _sleep(delay)
        second = start()
        runs = first.wait(), second.wait()
        if stage in bench.stages:
            outcome = bench.judge(project, stage, *runs)
            right = project.results(stage) == bench.expected[stage]
        else:
            if stage == "ask":
                right = _digests(project.folder / ANSWERS) == bench.answers
            else:
                right = _stored_rows(project.folder / ".store") == bench.rows
            outcome = max((_judge(run, lambda: right) for run in runs), key=OUTCOMES.index)
        if outcome == REFUSED and not right:
            outcome = WRONG
        return Trial("two at once", f"{stage}, {delay:.2f} s apart", outcome, " | ".join(run.last_line for run in runs))


def wrong_clock(bench: Bench, rng: Random) -> Trial:
    """Run a stage under a clock that is wrong and jumps back."""
    stage, seconds = rng.choice(bench.stages), rng.choice((-1, 1)) * 10 ** rng.uniform(2, 8.5)
    with bench.copy(bench.done) as project:
        project.remove_outs(stage)
        ended = Process(project, stage, faults.shift_clock(seconds)).wait()
        return Trial("clock jumps", f"{stage} by {seconds:.0f} s", bench.judge(project, stage, ended), ended.last_line)


KINDS: tuple[tuple[Callable[[Bench, Random], Trial], int], ...] = (
    (kill, 30),
    (refuse, 20),
    (damage_input, 10),
    (damage_store, 10),
    (damage_state, 6),
    (damage_batch, 5),
    (damage_image, 5),
    (damage_checkpoint, 6),
    (damage_packed, 6),
    (two_at_once, 8),
    (wrong_clock, 3),
)
"""With the share of each among the trials."""


def ask() -> None:
    """In a child: `knee-siglip infer` on the model and the images of the project."""
    arguments = ("--model_path", MODEL, "--csv_path", "own/train.csv", "--batch_size", "32")
    _command("infer", *arguments, "--output_path", f"{ANSWERS}/results.csv")()


def _command(*arguments: str) -> Callable[[], None]:
    def command() -> None:
        from knee_siglip.cli import main as cli

        sys.argv = ["knee-siglip", *arguments]
        cli.main()

    return command


def _after_damage(bench: Bench, project: Project, file: Path, rng: Random, stage: str, kind: str) -> Trial:
    """Damage a file, then run the stage; a sentence counts only if the stage is right once the file is sound again."""
    sound, times = file.read_bytes(), file.stat()
    case = f"{stage}: {file.relative_to(project.folder)}, {faults.damage(file, rng)}"
    project.remove_outs(stage) if kind != "flip: interrupted inference" else None
    ended = Process(project, stage).wait()
    outcome = bench.judge(project, stage, ended)
    if outcome == REFUSED:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        if bench.judge(project, stage, Process(project, stage).wait()) != IDENTICAL:
            outcome = WRONG
    return Trial(kind, case, outcome, ended.last_line)


def _judge(ended: Ended, is_right: Callable[[], bool]) -> str:
    if ended.hung:
        return HUNG
    if "Traceback" in ended.said:
        return TRACEBACK
    if ended.sentence:
        return REFUSED
    return IDENTICAL if ended.code == 0 and is_right() else WRONG


def _only_named_rows_differ(results: Path, bench: Bench, name: str) -> bool:
    """Whether the row of the damaged image has an error in place of its results, and all others are as they were."""
    lines = results.read_text().splitlines()
    before = (bench.done.folder / "reports/inference/results.csv").read_text().splitlines()
    changed = [(new, old) for new, old in zip(lines, before, strict=True) if new != old]
    return len(changed) == 1 and name in changed[0][0] and ",ok," not in changed[0][0]


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files_of(folder)}


def _stored_rows(store: Path) -> dict[str, bytes]:
    """Pixels by image id, read without the project's own code."""
    rows = {}
    for log in sorted(store.glob("pixels/*/*.ids")):
        pixels = log.with_suffix(".pixels").read_bytes()
        for line in log.read_text().splitlines():
            row, image_id, *_ = line.split(" ")
            rows[image_id] = pixels[int(row) * SIZE**2 :][: SIZE**2]
    return rows


def _die_before_merging() -> None:
    from knee_siglip.inference import batch, outputs

    outputs.ROWS_AT_RISK = 8
    batch.gather_parts = lambda *_: faults.die()


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)
