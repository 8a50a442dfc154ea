"""Open-i's reports of the Indiana University chest X-rays: XML, one file a report, to a table of images."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.importing.columns import ROW, TABLE

SECTIONS = ("COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION")


def read_reports(root: Path, names: Sequence[str]) -> pd.DataFrame:
    """A row for each image that a report names: `uid` (the report), `image`, `caption`, `mesh` and the sections' texts.

    Raises:
        UserError: a file is no XML.
    """
    rows = [row for name in names for row in _images(root / name, name)]
    return pd.DataFrame(rows, columns=["uid", "image", "caption", "mesh", *map(str.lower, SECTIONS), TABLE, ROW])


def _images(path: Path, name: str) -> list[dict[str, str]]:
    try:
        # S314: expat (2.4.1 and later) limits the expansion of entities, and ElementTree loads no external ones
        tree = ElementTree.parse(path).getroot()  # noqa: S314
    except (ElementTree.ParseError, OSError) as error:
        raise UserError(f"{path} is no readable XML: {error}") from None
    texts = {section.lower(): "" for section in SECTIONS}
    for part in tree.iter("AbstractText"):
        if (label := (part.get("Label") or "").upper()) in SECTIONS:
            texts[label.lower()] = " ".join((part.text or "").split())
    mesh = "; ".join((major.text or "").strip() for major in tree.iter("major"))
    return [
        {
            "uid": path.stem,
            "image": image.get("id") or "",
            "caption": " ".join((image.findtext("caption") or "").split()),
            "mesh": mesh,
            **texts,
            TABLE: name,
            ROW: "",
        }
        for image in tree.iter("parentImage")
    ]
