"""Which run a stage's results belong to, and what a run says of itself.

Training opens a run. The first evaluation and inference of its model join it. What was measured otherwise (params,
splits, code) is a run of its own, a child of the training's, so that no figure is ever overwritten; and the same
results, measured again or brought back by DVC, are the run they were.
"""

import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knee_siglip.core.nesting import flatten
from knee_siglip.params.sections import Params
from knee_siglip.tracking.runlog import Event, RunLog, read_pointer, session_starts, tracking_folder

SECTIONS = {"evaluate": ("task", "evaluate"), "infer": ("task", "evaluate", "infer")}
"""Sections of params.yaml that later stages depend on, and training does not."""

LATER = {"task", "evaluate", "infer"}


@dataclass(frozen=True)
class Record:
    """Results of a later stage, by what made them and what they are.

    key: of the same results. model: sha256 of the checkpoint's file.
    """

    stage: str
    model: str
    key: str

    @classmethod
    def of(cls, stage: str, model: str, params: Mapping[str, Any], figures: Mapping[str, Any]) -> "Record":
        """params: nested, with at least the stage's sections. figures: those of its metrics.json."""
        sections = {name: params[name] for name in SECTIONS[stage]}
        if stage == "infer":
            sections["evaluate"] = params["evaluate"]["label_prompts"]
        content = json.dumps([stage, model, sections, figures], sort_keys=True, default=str)
        return cls(stage, model, hashlib.sha256(content.encode()).hexdigest())


def find_run(record: Record, params: Params) -> tuple[str | None, str | None]:
    """(run that these results belong to, its parent); no run: they need one of their own."""
    if known := read_pointer(record.key):
        return known, None
    trained = read_pointer(record.model)
    if trained is None:
        return None, None
    events = _events(trained)
    children = [event["run"] for event in events if event["event"] == "child"]
    config = json.loads(json.dumps(params.flat(), default=str))
    for run in (trained, *children):
        if _has_room(_events(run), record.stage, config):
            return run, None
    return None, trained


def describe(params: Params, stage: str, facts: Mapping[str, Any], run_id: str, parent: str | None) -> Event:
    """What the trackers show of a run beside its values.

    Params of `tracking` are left out: they say nothing about the experiment, and a URI may hold a password.
    """
    name, changed = os.environ.get("DVC_EXP_NAME"), _git("status", "--porcelain", "--untracked-files=no")
    tags = {
        "DVC_EXP_NAME": name,
        "git_revision": git_revision(),
        "git_dirty": None if changed is None else str(bool(changed)).lower(),
        "data_hash": facts.get("data_hash"),
        "model_sha256": facts.get("model_sha256"),
        "record": facts.get("record"),
        "stage": stage,
    }
    own = set(SECTIONS.get(stage, ()))
    hidden = {"tracking"} | (LATER - own)
    sections = {key: values for key, values in params.to_dict().items() if key not in hidden}
    shown = {key: value for key, value in facts.items() if key not in tags}
    named = params.tracking.experiment_name or name
    return {
        "run": run_id,
        "parent": parent,
        "name": f"{named}, {stage}" if named and parent else named or run_id,
        "project": params.tracking.project_name,
        "stage": stage,
        "source": Path(sys.argv[0]).name,
        "tags": {key: str(value) for key, value in tags.items() if value},
        "config": {**flatten(shown), **flatten(sections)},
    }


def new_run_id() -> str:
    """Sortable by time, unique, and allowed as a W&B id. Takes nothing from the seeded random generators."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def git_revision() -> str | None:
    """The commit of the current folder; None outside a repository."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        # S607: the git that the user's shell would run
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=5)  # noqa: S607
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _events(run: str) -> list[Event]:
    return RunLog(tracking_folder() / f"{run}.jsonl", "").read()


def _has_room(events: list[Event], stage: str, config: Mapping[str, Any]) -> bool:
    """Whether a run has no results of this stage yet, and none that were measured with other params."""
    starts = [start for start in session_starts(events).values() if start["stage"] in SECTIONS]
    if any(start["stage"] == stage for start in starts):
        return False
    later = tuple(f"{section}." for section in LATER)
    logged = {key: value for start in starts for key, value in start["config"].items() if key.startswith(later)}
    return all(config.get(key) == value for key, value in logged.items())
