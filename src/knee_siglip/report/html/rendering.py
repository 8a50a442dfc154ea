"""Templates to HTML files that ask for nothing from elsewhere: the same bytes for the same content.

Pages stand alone, without a script. Only the case browser has one, which its policy names by its hash, and files beside
it.

A stage's package keeps its templates in `templates/`; they extend `base.html.j2` of this package and import its
`parts.html.j2`. Everything that comes from the data is escaped by jinja2.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from knee_siglip.core.cells import printable
from knee_siglip.core.files import atomic_file
from knee_siglip.report.html.charts import legend
from knee_siglip.report.html.numbers import number, percent, readable


def write_html(path: Path, package: str, template: str, **context: Any) -> None:
    """Render `template` of `package` and write it. Control characters and lone surrogates are shown escaped."""
    html = _environment(package).get_template(template).render(context)
    with atomic_file(path) as file:
        file.write(html.encode(errors="replace"))


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("knee_siglip.report.html")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": number, "percent": percent, "readable": readable, "breakable": _breakable}
    environment.globals |= {"legend": legend}
    return environment


def _shown(value: Any) -> Any:
    """A text from outside without control characters; what is HTML already stays."""
    return printable(value) if type(value) is str else value


def _breakable(cell: str) -> Markup:
    """A figure whose interval may go on a second line, so that wide tables are not cut off."""
    return escape(_shown(cell)).replace(" (", Markup("<wbr> ("))
