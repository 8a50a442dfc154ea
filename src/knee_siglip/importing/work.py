"""What an import is asked for, and its state while it runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from knee_siglip.importing.files import Files
from knee_siglip.importing.outcome import Outcome


@dataclass(frozen=True)
class Options:
    """What the user asked for; None and empty: find out.

    source: a table or a folder. out: the CSV. layout: a preset or YAML. maps: our column to a column or template.
    joins: as `joining.parse_join`. images, reports: where they lie. template: of composed impressions. pattern: regular
    expression over the image's path whose groups become columns. keep_ids: DICOM ids are not replaced.
    """

    source: Path
    out: Path
    layout: str | None = None
    maps: Mapping[str, str] = field(default_factory=dict)
    joins: Sequence[str] = ()
    images: Path | None = None
    reports: Path | None = None
    template: str | None = None
    pattern: str | None = None
    keep_ids: bool = False
    encoding: str | None = None
    sheet: str | None = None


@dataclass
class Import:
    """One import under way: what was asked, the files of the source and of the images, and what happened so far.

    unfit: why tables of the folder are not the one that names the images.
    """

    options: Options
    files: Files
    images: Files
    outcome: Outcome
    unfit: list[str] = field(default_factory=list)
