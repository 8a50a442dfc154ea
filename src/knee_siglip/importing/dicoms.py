"""Rows from the headers of a folder of DICOMs.

Of a header only these leave this module: coded words out of fixed lists (view, laterality, body part), and the patient,
study and series ids, by which a table may be joined and which `pseudonyms` then replaces. No name, no date and no free
text is copied, not even into an error.
"""

import hashlib
import hmac
import io
import logging
import math
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from knee_siglip.core.errors import UserError
from knee_siglip.core.files import atomic_text, sole_writer
from knee_siglip.core.processes import work_in_chunks
from knee_siglip.imaging.decode.decoded import ImageError
from knee_siglip.imaging.decode.dicom import is_dicom
from knee_siglip.imaging.decode.header import Header
from knee_siglip.imaging.decode.read import read_bytes
from knee_siglip.importing.columns import IMAGE, ROW, TABLE
from knee_siglip.importing.outcome import Outcome

IDS = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
CODES = ("ViewPosition", "ImageLaterality", "Laterality", "BodyPartExamined")

VIEWS = ("AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LATERAL", "LAT", "AXIAL", "TANGENTIAL", "SUNRISE")
SIDES = ("L", "R", "B", "U")
BODY_PARTS = ("KNEE", "CHEST", "HIP", "HAND", "WRIST", "ELBOW", "SHOULDER", "ANKLE", "FOOT", "PELVIS", "LEG", "SKULL")

KEY_FILE = ".knee-siglip-import.key"
KEY_BYTES, PSEUDONYM_LENGTH = 32, 16
FILES_PER_CHUNK = 32

NOT_DICOM, NO_PIXELS, FRAMES = "is no DICOM", "DICOM without pixels (a report, say)", "DICOM of several frames"


def dicom_rows(root: Path, names: Sequence[str], outcome: Outcome) -> pd.DataFrame:
    """A row for each DICOM with one frame of pixels: ids, view, side, body_part and the sha256 of its pixel data.

    What is none is dropped, with the reason.
    """
    files = [str(root / name) for name in names]
    parts = work_in_chunks(_headers, files, FILES_PER_CHUNK, "Reading headers")
    by_file = {facts.pop("file"): facts for part in parts for facts in part}
    rows = pd.DataFrame([by_file[file] for file in files]).fillna("")
    rows = rows.assign(**{IMAGE: list(names), TABLE: "DICOM headers", ROW: ""})
    for reason in rows.loc[rows["problem"] != "", "problem"].unique():
        rows = outcome.drop(rows, rows["problem"] == reason, reason)
    outcome.read("DICOM headers", len(names))
    return rows.drop(columns="problem").reset_index(drop=True)


def pseudonyms(ids: pd.Series, key: bytes) -> pd.Series:
    """Ids to names that only the key's holder can tell again: HMAC-SHA-256, 64 bits of it; '' stays."""
    names = {
        text: hmac.new(key, text.strip().encode(), hashlib.sha256).hexdigest()[:PSEUDONYM_LENGTH]
        if text.strip()
        else ""
        for text in ids.unique()
    }
    return ids.map(names)


def pseudonym_key(folder: Path) -> bytes:
    """The key beside the CSV, drawn when there is none: equal ids get equal pseudonyms in all imports into one folder.

    Raises:
        UserError: the key cannot be read or written, or is damaged.
    """
    path = folder / KEY_FILE
    with sole_writer(path, wait=math.inf):  # two imports into a new folder at once take the same key
        if path.exists():
            return _read_key(path)
        key = secrets.token_bytes(KEY_BYTES)
        with atomic_text(path) as file:
            file.write(f"{key.hex()} {_checksum(key)}\n")
        path.chmod(0o600)
        return key


def _read_key(path: Path) -> bytes:
    """Another key would make two patients of one, in silence."""
    try:
        digits, *checksum = path.read_text(encoding="ascii").split()
        key = bytes.fromhex(digits)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, the key of earlier pseudonyms, cannot be read: {error}") from None
    if len(key) != KEY_BYTES or checksum not in ([], [_checksum(key)]):  # earlier versions wrote none
        raise UserError(
            f"{path}, the key of earlier pseudonyms, is damaged; bring back a copy, or remove it and import again "
            "whatever its folder holds"
        )
    return key


def _checksum(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]


def _headers(files: Sequence[str]) -> list[dict[str, str]]:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its warnings quote header values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [{"file": file, **_header(Path(file))} for file in files]


def _header(path: Path) -> dict[str, str]:
    from pydicom import dcmread

    try:
        data = read_bytes(path)
    except ImageError:
        return {"problem": "cannot be read"}
    if not is_dicom(data, path):
        return {"problem": NOT_DICOM}
    try:
        dataset = dcmread(io.BytesIO(data), force=True, specific_tags=[*IDS, *CODES, "NumberOfFrames", "PixelData"])
        header = Header(dataset, path)
        pixels = dataset.get_item("PixelData") if "PixelData" in dataset else None
        frames = header.number("NumberOfFrames") or 1
        problem = NO_PIXELS if pixels is None else FRAMES if frames > 1 else ""
        ids = {name: "".join(header.texts(name)[:1]) for name in IDS}
        digest = hashlib.sha256(bytes(pixels.value)).hexdigest() if pixels is not None else ""
        return {**ids, **_codes(header), "pixels_sha256": digest, "problem": problem}
    except Exception:  # parsers raise anything on damaged files; their messages quote header values
        return {"problem": "is damaged"}


def _codes(header: Header) -> dict[str, str]:
    side = header.code("ImageLaterality", SIDES) or header.code("Laterality", SIDES)
    return {
        "view": header.code("ViewPosition", VIEWS),
        "side": {"U": ""}.get(side, side),
        "body_part": header.code("BodyPartExamined", BODY_PARTS).lower(),
    }
