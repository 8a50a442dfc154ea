"""How a data set is laid out: which tables it has, what their columns mean, where its images lie.

A layout is a YAML file: the presets lie in `layouts/`, and `--layout my.yaml` reads another one. docs/import.md
describes the keys.
"""

import difflib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from knee_siglip.core.errors import UsageError
from knee_siglip.importing.files import Files


class Strict(BaseModel):
    """Unknown keys are errors; YAML's numbers are text where text is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class TableLayout(Strict):
    """Tables of one kind, one below the other.

    files: endings of their names, `*` allowed. set: columns of one value each. coded: cells are `1: Right`, and
    `.: Missing` is empty. melt: regular expression of the columns that hold several readings of a row (visits, sides);
    its groups become columns, and its group `name` names the value's. reader: `openi` for reports in XML.
    """

    files: list[str]
    set: dict[str, str] = {}
    coded: bool = False
    melt: str | None = None
    reader: Literal["table", "openi"] = "table"


class JoinLayout(TableLayout):
    """A table whose columns join the rows; on: the rows' column or template to the table's. prefer: of several rows for
    one key, those whose column has this value win."""

    on: dict[str, str]
    prefer: dict[str, str] = {}


class Labels(Strict):
    """Findings from which an impression is composed: one column of names, or a column each.

    none: names that say that nothing was found. normal: the text for those.
    """

    column: str | None = None
    separator: str = "|"
    columns: list[str] = []
    positive: list[str] = ["1", "1.0"]
    uncertain: list[str] = ["-1", "-1.0"]
    none: list[str] = []
    normal: str = "No finding."


class Texts(Strict):
    """A sentence for each value of a column, to compose an impression; `{name}` is another column's value."""

    column: str
    texts: dict[str, str]


class Layout(Strict):
    """One data set.

    detect: every one of these files must be there. tables: the rows; without any, the images that one of `paths`
    matches (regular expressions whose groups become columns). skip: regular expression of images that are left out, to
    the reason. image: the column or template that names a row's image. columns: ours to the source's column, or to a
    template such as `{patient}/{study}`. patterns: column to the regular expression whose groups become columns.
    reports: template of the name of a row's report, a text file. impression: columns with it, the first that is not
    empty counts. labels, texts: what it is composed from where the set has none. values: column to what each of its
    values becomes. lists: split to the file that lists its images. vote_by: rows of one image by several readers are
    one, by majority. main_reader: column and value of the reader whose grade counts where an image was graded twice.
    sides_in_one: several rows of one image are its two knees. task: the file in tasks/ that fits
    the set; None: the knee's. notes: for the report.
    """

    title: str
    detect: list[str] = []
    tables: list[TableLayout] = []
    paths: list[str] = []
    skip: dict[str, str] = {}
    joins: list[JoinLayout] = []
    image: str = ""
    columns: dict[str, str] = {}
    patterns: dict[str, str] = {}
    reports: str | None = None
    impression: list[str] = []
    labels: Labels | None = None
    texts: Texts | None = None
    values: dict[str, dict[str, str]] = {}
    lists: dict[str, str] = {}
    vote_by: str | None = None
    main_reader: dict[str, str] = {}
    sides_in_one: bool = False
    task: str | None = None
    notes: list[str] = []


@cache
def presets() -> dict[str, Layout]:
    """The layouts that ship, by name."""
    folder = files("knee_siglip.importing") / "layouts"
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(".yaml"))
    return {
        name.removesuffix(".yaml"): parse_layout((folder / name).read_text(encoding="utf-8"), name) for name in found
    }


def parse_layout(text: str, name: str) -> Layout:
    """A layout from YAML.

    Raises:
        UsageError: it is none; the message names the file and the key.
    """
    try:
        return Layout.model_validate(YAML(typ="safe").load(text) or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise UsageError(f"{name} is no layout: {where}: {first['msg']}") from None
    except (YAMLError, RecursionError) as error:
        raise UsageError(f"{name} is no YAML: {str(error).splitlines()[0]}") from None


def named_layout(name: str) -> Layout:
    """A preset, or the layout in a YAML file.

    Raises:
        UsageError: there is neither.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        try:
            return parse_layout(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--layout {name} cannot be read: {getattr(error, 'strerror', error)}") from None
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"the layouts are {', '.join(presets())}, or a YAML file"
        raise UsageError(f"--layout {name} is unknown; {hint}")
    return presets()[name]


def detect_layout(source: Files) -> str | None:
    """The preset whose files are all there; of several the one that asks for most."""
    fitting = [
        name
        for name, layout in presets().items()
        if layout.detect and all(source.matching(pattern) for pattern in layout.detect)
    ]
    return max(fitting, key=lambda name: len(presets()[name].detect), default=None)
