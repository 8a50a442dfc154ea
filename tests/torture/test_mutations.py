"""Thousands of damaged files, drawn by a fixed seed: decoding gives pixels or an `ImageError`, and nothing else."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from knee_siglip.imaging.decode.read import ImageError, decode

GREY = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
PICTURES = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
SYNTAXES = {"plain": None, "rle": RLELossless, "jpeg-ls": JPEGLSLossless, "jpeg-2000": JPEG2000Lossless}
HEADER = 600
"""Bytes at the start that most of the damage hits."""


def picture(form: str, deep: bool) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) * 200 if deep else GREY).save(stream, form)
    return stream.getvalue()


def dicom(syntax: str | None) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.4"
    dataset.Rows, dataset.Columns = GREY.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PatientName = "Doe^Jane"
    dataset.PixelData = (GREY.astype(np.uint16) * 16).tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut off, or with a few bits flipped, bytes changed, taken out or put in."""
    if draw.random() < 0.15:
        return data[: draw.randrange(1, len(data))]
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(HEADER, len(broken)) if draw.random() < 0.6 else len(broken))
        kind = draw.randrange(4)
        if kind == 0:
            broken[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            broken[at] = draw.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del broken[at : at + draw.randrange(1, 9)]
        else:
            broken[at:at] = draw.randbytes(draw.randrange(1, 9))
        broken = broken or bytearray(b"\0")
    return bytes(broken)


def decode_damaged(data: bytes, seed: int, times: int) -> tuple[int, int]:
    """(how many were read, how many refused)."""
    draw = random.Random(seed)
    read, messages = 0, []
    for _ in range(times):
        try:
            decoded = decode(damaged(data, draw), Path("damaged.img"))
        except ImageError as error:
            messages.append(str(error))
        else:
            assert decoded.grey.dtype == np.uint8
            assert decoded.grey.ndim == 2
            read += 1
    assert all(message.startswith("damaged.img: ") and message.isprintable() for message in messages)
    assert "Doe" not in "".join(messages)
    return read, len(messages)


@pytest.mark.parametrize("form", PICTURES)
@pytest.mark.parametrize("deep", [False, True])
def test_damaged_picture_is_read_or_refused(form, deep):
    if deep and form not in ("PNG", "TIFF", "JPEG2000"):
        pytest.skip("has 8 bits only")
    read, refused = decode_damaged(picture(form, deep), seed=PICTURES.index(form), times=250)
    assert refused > 0
    assert read > 0 or form == "PNG"  # whose checksums tell nearly every change


@pytest.mark.parametrize("name", SYNTAXES)
def test_damaged_dicom_is_read_or_refused(name):
    assert min(decode_damaged(dicom(SYNTAXES[name]), seed=7, times=250)) > 0
