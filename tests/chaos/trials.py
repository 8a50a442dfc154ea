"""The kinds of trials: what is done, and whether what the project then holds is what an undisturbed run leaves."""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from . import faults
from .processes import AT_END, Ended, Process, load_too, note_modules
from .project import COMMANDS, MODEL, PACKED, STAGES, STORE, Project, files_of, make_project

IDENTICAL, REFUSED, WRONG, TRACEBACK, HUNG = "identical", "refused", "wrong in silence", "traceback", "hung"
OUTCOMES = (IDENTICAL, REFUSED, WRONG, TRACEBACK, HUNG)

LOG_BYTES = 20_000
"""What a stage says goes into a file, which a limit on files would cut too."""

PARTS = (*STAGES, *COMMANDS)

LONG = ("sample", "train outside")
"""Tried less often than other parts."""


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
        parts: stages and commands that take part, in order, with all before them that they read.
    """

    def __init__(self, folder: Path, parts: tuple[str, ...] = PARTS) -> None:
        self.folder, self.parts = folder, parts
        self.stages = [part for part in parts if part in STAGES]
        self.done = make_project(folder / "done")
        self.calls: dict[str, list[tuple[str, int]]] = {}
        self.expected: dict[str, dict[str, str]] = {}
        for part in parts:
            self._undisturbed(part)
        self.done.write_lock()
        if "train" in parts:
            self.training = self._interrupted("train", faults.at_call("replace", 12, faults.die))
        if "infer" in parts:
            self.inferring = self._interrupted("infer", _die_before_merging)

    def _undisturbed(self, part: str) -> None:
        calls, modules = self.folder / f"{part}.json", self.folder / f"{part}.txt"

        def prepare() -> None:
            AT_END.append(partial(note_modules, modules))
            faults.count_calls(calls, AT_END)()

        self.done.remove_outs(part) if part != "unpack" else None
        ended = Process(self.done, part, prepare).wait()
        assert ended.code == 0, ended.said
        load_too(modules)
        self.done.seconds[part] = ended.seconds
        self.calls[part] = [(name, count) for name, count in json.loads(calls.read_text()).items() if count]
        self.expected[part] = self.done.results(part)

    def _interrupted(self, stage: str, prepare: Callable[[], None]) -> Project:
        project = self.done.copy(self.folder / stage)
        project.remove_outs(stage)
        assert Process(project, stage, prepare).wait().code == -9
        return project

    def some_part(self, rng: Random) -> str:
        """A stage or a command."""
        return rng.choices(self.parts, [1 if part in LONG else 4 for part in self.parts])[0]

    def moment(self, part: str, rng: Random) -> tuple[str, int]:
        """A system call that the stage or command does, and which of them."""
        call, count = rng.choice(self.calls[part])
        return call, rng.randint(1, count)

    @contextmanager
    def copy(self, of: Project, disk: bool = False) -> Iterator[Project]:
        """A copy for one trial; `disk`: on a small one of its own."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, faults.small_disk(Path(folder), disk):
            yield of.copy(Path(folder) / "project")

    def judge(self, project: Project, part: str, *runs: Ended) -> str:
        """The outcome of runs that should have made what a stage or command writes; see `OUTCOMES`."""
        if any(run.hung for run in runs):
            return HUNG
        if any("Traceback" in run.said for run in runs):
            return TRACEBACK
        if any(run.sentence for run in runs):
            return REFUSED
        return IDENTICAL if project.results(part) == self.expected[part] and runs[-1].code == 0 else WRONG

    def judge_again(self, project: Project, part: str, outcome: str) -> str:
        """A refusal counts only if the same command is right once its cause is gone."""
        if outcome == REFUSED:
            project.remove_outs(part)
            again = self.judge(project, part, Process(project, part).wait())
            return REFUSED if again == IDENTICAL else max(again, WRONG, key=OUTCOMES.index)
        return outcome


def kill(bench: Bench, rng: Random) -> Trial:
    """Kill a stage or command at a random or a named moment, then run it again, at once."""
    part, whom = bench.some_part(rng), rng.choice(("group", "process", "dvc"))
    with bench.copy(bench.done) as project:
        first, moment = _stopped(bench, project, part, whom, rng)
        second = Process(project, part)  # beside what the first has left behind, if that still lives
        ended, before = second.wait(), first.wait()
        outcome = HUNG if before.hung else bench.judge_again(project, part, bench.judge(project, part, ended))
        return Trial(f"kill: {whom}", f"{part} at {moment}", outcome, ended.last_line)


def interrupt(bench: Bench, rng: Random) -> Trial:
    """Interrupt a stage or command: it says so, leaves nothing half-written, and does its work when it is run again."""
    part = bench.some_part(rng)
    with bench.copy(bench.done) as project:
        first, moment = _stopped(bench, project, part, "Ctrl-C", rng)
        ended = first.wait()
        said, left = ended.last_line, project.half_written()
        if ended.hung or "Traceback" in ended.said:
            outcome = HUNG if ended.hung else TRACEBACK
        elif left or (ended.code and not (ended.code == 130 and ended.sentence)):
            outcome, said = WRONG, f"{said}; half-written: {', '.join(file.name for file in left)}"
        else:
            again = Process(project, part).wait()
            outcome = bench.judge_again(project, part, bench.judge(project, part, again))
            said += f", then: {again.last_line}"
        return Trial("Ctrl-C", f"{part} at {moment}", outcome, said)


def _stopped(bench: Bench, project: Project, part: str, whom: str, rng: Random) -> tuple[Process, str]:
    """A stage or command, started and at a random moment or a named one killed or interrupted, and when."""
    project.remove_outs(part)
    if rng.random() < 0.5:
        call, number = bench.moment(part, rng)
        return Process(project, part, faults.at_call(call, number, faults.DEATHS[whom])), f"{call} {number}"
    seconds = rng.uniform(0, bench.done.seconds[part])
    process = Process(project, part)
    time.sleep(seconds)
    process.kill(whom)
    return process, f"{seconds:.2f} s"


def refuse(bench: Bench, rng: Random) -> Trial:
    """Let a call of the system fail, then run the stage or command again where none does."""
    part, number = bench.some_part(rng), rng.choice(faults.REFUSALS)
    call, count = bench.moment(part, rng)
    with bench.copy(bench.done) as project:
        project.remove_outs(part)
        first = Process(project, part, faults.at_call(call, count, faults.refuse(number))).wait()
        outcome = _judge_refusal(bench, project, part, first)
        return Trial("disk: refused call", f"{part}: {os.strerror(number)} at {call} {count}", outcome, first.last_line)


def limit(bench: Bench, rng: Random) -> Trial:
    """Limit the size of files, then run the stage or command again without."""
    part = bench.some_part(rng)
    with bench.copy(bench.done) as project:
        written = [file for name in project.outs[part] for file in files_of(project.folder / name)]
        longest = max((file.stat().st_size for file in written), default=0)
        size = LOG_BYTES + int(longest * rng.random() ** 3)
        project.remove_outs(part)
        first = Process(project, part, faults.limit_files(size)).wait()
        outcome = _judge_refusal(bench, project, part, first)
        return Trial("disk: size limit", f"{part}: files up to {size} bytes", outcome, first.last_line)


def fill(bench: Bench, rng: Random) -> Trial:
    """Fill the disk, a small tmpfs, then run the stage or command again with more space."""
    part = bench.some_part(rng)
    with bench.copy(bench.done, disk=True) as project:
        before = _bytes_below(project.folder)
        project.remove_outs(part)
        needed = before - _bytes_below(project.folder)
        free = int(needed * rng.random()) // 4096 * 4096
        faults.resize_disk(project.folder.parent, free)
        first = Process(project, part).wait()
        faults.resize_disk(project.folder.parent, faults.ROOMY)
        outcome = _judge_refusal(bench, project, part, first)
        return Trial("disk: full", f"{part}: {free} of {needed} bytes free", outcome, first.last_line)


def _judge_refusal(bench: Bench, project: Project, part: str, first: Ended) -> str:
    refused = bench.judge(project, part, first)
    project.remove_outs(part)
    again = bench.judge(project, part, Process(project, part).wait())
    return refused if again == IDENTICAL or refused in (TRACEBACK, HUNG) else WRONG


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
    """Damage the store under a stage or command that reads it."""
    readers = ("validate", "preprocess", "train", "evaluate", "pack", "train outside")
    part = rng.choice([part for part in readers if part in bench.parts])
    places = [("pixels", ".pixels"), ("pixels", ".ids"), ("pixels", ".json"), ("tracking", "")]
    if part == "train outside":
        places = [("features", ".features"), ("features", ".ids"), ("features", ".json"), ("pixels", ".pixels")]
    folder, ending = rng.choice(places) if part != "validate" else ("facts", ".parquet")
    with bench.copy(bench.done) as project:
        files = [file for file in files_of(project.folder / STORE / folder) if file.name.endswith(ending)]
        return _after_damage(bench, project, rng.choice(files), rng, part, f"flip: store, {folder}")


def damage_state(bench: Bench, rng: Random) -> Trial:
    """Damage what an interrupted training goes on from."""
    with bench.copy(bench.training) as project:
        files = [file for file in files_of(project.folder / STORE / "runs") if file.name != ".lock"]
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
            shutil.rmtree(project.folder / STORE / "pixels")
        file = rng.choice(files_of(project.folder / "own/images"))
        trial = _after_damage(bench, project, file, rng, stage, "flip: images after validation")
        results = project.folder / "reports/inference/results.csv"
        if trial.outcome == WRONG and stage == "infer" and _only_named_rows_differ(results, bench, file.name):
            return Trial(trial.kind, trial.case, REFUSED, "its row says so")
        return trial


def damage_checkpoint(bench: Bench, rng: Random) -> Trial:
    """Damage a model that a command is asked to use, without DVC."""
    part = rng.choice([part for part in ("batch", "map") if part in bench.parts])
    with bench.copy(bench.done) as project:
        return _after_damage(bench, project, project.folder / MODEL, rng, part, "flip: checkpoint")


def damage_packed(bench: Bench, rng: Random) -> Trial:
    """Damage a packed store, then unpack it into an empty one."""
    with bench.copy(bench.done) as project:
        return _after_damage(bench, project, project.folder / PACKED, rng, "unpack", "flip: packed store")


def two_at_once(bench: Bench, rng: Random) -> Trial:
    """Start a stage or a command twice."""
    part, delay = bench.some_part(rng), rng.uniform(0, 0.3)
    with bench.copy(bench.done) as project:
        project.remove_outs(part)
        first = Process(project, part)
        time.sleep(delay)
        second = Process(project, part)
        runs = first.wait(), second.wait()
        outcome = bench.judge(project, part, *runs)
        if outcome == REFUSED and project.results(part) != bench.expected[part]:
            outcome = WRONG
        return Trial("two at once", f"{part}, {delay:.2f} s apart", outcome, " | ".join(run.last_line for run in runs))


def wrong_clock(bench: Bench, rng: Random) -> Trial:
    """Run a stage or a command under a clock that is wrong and jumps back."""
    part, seconds = bench.some_part(rng), rng.choice((-1, 1)) * 10 ** rng.uniform(2, 8.5)
    with bench.copy(bench.done) as project:
        project.remove_outs(part)
        ended = Process(project, part, faults.shift_clock(seconds)).wait()
        return Trial("clock jumps", f"{part} by {seconds:.0f} s", bench.judge(project, part, ended), ended.last_line)


KINDS: tuple[tuple[Callable[[Bench, Random], Trial], int, tuple[str, ...]], ...] = (
    (kill, 30, ()),
    (interrupt, 10, ()),
    (refuse, 12, ()),
    (limit, 6, ()),
    (fill, 6, ()),
    (damage_input, 10, ("validate",)),
    (damage_store, 10, ("validate",)),
    (damage_state, 6, ("train",)),
    (damage_batch, 5, ("infer",)),
    (damage_image, 5, ("preprocess",)),
    (damage_checkpoint, 6, ("batch",)),
    (damage_packed, 6, ("unpack",)),
    (two_at_once, 8, ()),
    (wrong_clock, 4, ()),
)
"""With the share of each among the trials, and the parts that it needs."""


def _after_damage(bench: Bench, project: Project, file: Path, rng: Random, part: str, kind: str) -> Trial:
    """Damage a file, then run the stage or command; see `Bench.judge_again`."""
    sound, times = file.read_bytes(), file.stat()
    case = f"{part}: {file.relative_to(project.folder)}, {faults.damage(file, rng)}"
    project.remove_outs(part) if kind != "flip: interrupted inference" else None
    ended = Process(project, part).wait()
    outcome = bench.judge(project, part, ended)
    if outcome == REFUSED:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        if kind == "flip: interrupted inference":
            again = bench.judge(project, part, Process(project, part).wait())
            outcome = REFUSED if again == IDENTICAL else WRONG
        else:
            outcome = bench.judge_again(project, part, outcome)
    return Trial(kind, case, outcome, ended.last_line)


def _only_named_rows_differ(results: Path, bench: Bench, name: str) -> bool:
    """Whether the row of the damaged image has an error in place of its results, and all others are as they were."""
    lines = results.read_text().splitlines()
    before = (bench.done.folder / "reports/inference/results.csv").read_text().splitlines()
    changed = [(new, old) for new, old in zip(lines, before, strict=True) if new != old]
    return len(changed) == 1 and name in changed[0][0] and ",ok," not in changed[0][0]


def _bytes_below(folder: Path) -> int:
    """As a tmpfs counts them."""
    return sum(math.ceil(file.stat().st_size / 4096) * 4096 for file in files_of(folder))


def _die_before_merging() -> None:
    from knee_siglip.inference import batch, outputs

    outputs.ROWS_AT_RISK = 8
    batch.gather_parts = lambda *_: faults.die()
