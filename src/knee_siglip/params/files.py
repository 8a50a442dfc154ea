"""Reads and checks params files, with DVC's YAML 1.2 rules (`1e-05` is a number); one sentence per mistake."""

import difflib
from pathlib import Path
from reprlib import Repr
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from knee_siglip.core.errors import UsageError
from knee_siglip.core.files import atomic_text
from knee_siglip.core.nesting import flatten
from knee_siglip.core.paths import PARAMS
from knee_siglip.params.checks import check_image_size, check_task
from knee_siglip.params.sections import Params, Section


def load_params(path: Path = PARAMS) -> Params:
    """Read and check a whole params file.

    Raises:
        UsageError: naming the key, its value and what is allowed; all mistakes at once.
    """
    values = _read_yaml(path)
    return parse_params({} if values is None else values, source=str(path), folder=path.parent)


FOR_DVC = ("data.csv", "data.external", "data.images", "task", "infer.csv_path", "infer.images")
"""Keys that dvc.yaml names: DVC itself reads them, and knows no defaults."""


def check_stated(path: Path = PARAMS) -> None:
    """Raise `UsageError` unless a params file states each key of `FOR_DVC`."""
    stated = flatten(_read_yaml(path) or {})
    if missing := [key for key in FOR_DVC if key not in stated]:
        raise UsageError(
            f"{path}: {missing[0]} is missing; dvc.yaml uses it, so its default must stand in the file too"
        )


def _read_yaml(path: Path) -> Any:
    if path.exists() and not path.is_file():  # a pipe would hang, a device fill the memory
        raise UsageError(f"{path} is no file; name a YAML file")
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; run from the project's root") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise UsageError(f"{path} is not valid YAML{where}: {what}") from None
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None


def save_params(params: Params, path: Path) -> None:
    """Write a params file that `load_params` reads back as it is."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.sort_base_mapping_type_on_output, yaml.width = False, False, 120
    with atomic_text(path) as file:
        yaml.dump(params.to_dict(), file)


def parse_params(values: object, source: str = "params", folder: Path = Path()) -> Params:
    """Build `Params` from a nested dict; every mistake is one line of the `UsageError`.

    `task` is a section, as checkpoints and saved params hold it, or the path of a file with its keys; a relative one is
    looked for in the current folder, then in `folder` and those above it.
    """
    if not isinstance(values, dict):
        raise UsageError(f"{source} must hold sections (key: value), not {type(values).__name__}")
    task = values.get("task")
    if isinstance(task, str):
        values = values | {"task": _read_task(task, source, folder)}
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        said = "\n".join(_sentences(source, error))
        raise UsageError(said if not isinstance(task, str) else _named_by_file(said, source, task)) from None
    check_image_size(params, source)
    check_task(params, source if not isinstance(task, str) else f"{source}, {task}")
    return params


def _read_task(name: str, source: str, folder: Path) -> dict[str, Any]:
    """The section `task` that a file of tasks/ holds."""
    folder = folder.absolute()
    places = [place / name for place in (Path(), folder, *folder.parents)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UsageError(f"{source}: task = {name!r}: is no file; name one such as tasks/knee.yaml or tasks/chest.yaml")
    section = _read_yaml(path)
    if not isinstance(section, dict):
        raise UsageError(f"{path} must hold the keys of a task (key: value), such as subject; see docs/another-task.md")
    if "subject" not in section:
        raise UsageError(f"{path}: subject is missing; it names what an image shows, such as knee or chest")
    return section


def _named_by_file(sentences: str, source: str, task: str) -> str:
    """Sentences about the task name the file where it stands."""
    return sentences.replace(f"{source}: task: ", f"{task}: ").replace(f"{source}: task.", f"{task}: ")


PYDANTICS_OWN = ("function-", "literal[", "constrained-", "int", "float")
"""Prefixes of parts of an error's location that name a type of a union, not a key."""


MESSAGES = {
    "model_type": "must be a section (key: value); leave the whole line out to take its defaults",
}
"""In place of pydantic's own, which names a class of this package."""


SHOWN = Repr()
"""YAML's aliases make a value of gigabytes from ten lines."""
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxother = 2, 300, 300


def _sentences(source: str, error: ValidationError) -> list[str]:
    """One sentence per key, whatever number of types it allows."""
    reasons: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        if len(location) > 1 and location[-1].startswith(PYDANTICS_OWN):
            del location[-1]
        key = ".".join(part for part in location if not part.startswith(PYDANTICS_OWN[:2]))
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, list(_known_keys(Params)), n=1, cutoff=0.4)
            reasons[key] = [f"unknown key; did you mean {near[0]}?" if near else "unknown key"]
        else:
            reasons.setdefault(key, []).append(MESSAGES.get(item["type"], item["msg"].removeprefix("Value error, ")))
            if not isinstance(item["input"], dict):  # of a whole section the reason names the key
                values[key] = item["input"]
    sentences = []
    for key, (first, *others) in reasons.items():
        shown = f" = {SHOWN.repr(values[key])}" if key in values else ""
        either = " or ".join([first, *(text.removeprefix("Input should be ") for text in others)])
        sentences.append(f"{source}: {key}{shown}: {either}")
    return sentences


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        keys.append(key)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                keys += _known_keys(kind, f"{key}.")
    return keys
