"""DICOM radiographs to grey. Only pixels leave this module: no name, no description, not even in an error."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knee_siglip.data.grey import Decoded, ImageError, check_size, stretch, to_uint8

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = {".dcm", ".dicom", ".dic"}
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R 601, as Pillow's `convert("L")`."""


def is_dicom(data: bytes, path: Path) -> bool:
    """By the magic word after the preamble; by the file's ending where an old file has no preamble."""
    return data[128:132] == b"DICM" or path.suffix.lower() in SUFFIXES


def decode_dicom(data: bytes, path: Path) -> Decoded:
    """Rescale, VOI LUT or window, MONOCHROME1 inverted: what a viewer shows first.

    Raises:
        ImageError: no DICOM, no pixels, several frames, damaged, or no codec for its transfer syntax.
    """
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote header values
        try:
            dataset = dcmread(io.BytesIO(data), force=True)
            _check(dataset, path)
            grey = _grey(dataset)
            if grey.ndim != 2:
                raise ImageError(f"{path}: DICOM with pixels of shape {grey.shape}; one grey or RGB frame is read")
            return Decoded(grey, int(dataset.BitsStored), f"DICOM {dataset.PhotometricInterpretation}")
        except ImageError:
            raise
        except Exception as error:  # parsers raise anything on damaged files; their messages quote header values
            raise ImageError(
                f"{path}: DICOM that cannot be decoded ({type(error).__name__}): damaged, or a codec is missing"
            ) from None


def _check(dataset: "Dataset", path: Path) -> None:
    from pydicom.uid import ImplicitVRLittleEndian

    if "PixelData" not in dataset:
        raise ImageError(f"{path}: DICOM without (complete) pixel data, or no DICOM at all")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"{path}: DICOM with {frames} frames; a radiograph has one")
    check_size(int(dataset.Columns), int(dataset.Rows), path)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # the default where a bare data set names none


def _grey(dataset: "Dataset") -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    stored: np.ndarray = dataset.pixel_array  # YBR comes as RGB
    kind = dataset.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        return to_uint8(colours[..., :3] @ LUMA, 0, np.iinfo(colours.dtype).max)
    if stored.ndim == 3:
        return to_uint8(stored @ LUMA, 0, 2 ** int(dataset.BitsStored) - 1)
    grey = _monochrome(stored, dataset)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _monochrome(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Stored values (H, W) to uint8, MONOCHROME1 not yet inverted.

    Without a usable window (none, or one that shows a single grey) 8-bit values stay and deeper ones are stretched.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    values: np.ndarray = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown: np.ndarray | None = to_uint8(apply_voi(values, dataset), 0, 2**bits - 1)
    else:
        shown = _window(values, dataset)
    if shown is not None and shown.min() < shown.max():
        return shown
    return stored.astype(np.uint8) if stored.dtype == np.uint8 and dataset.BitsStored == 8 else stretch(values)


def _window(values: np.ndarray, dataset: "Dataset") -> np.ndarray | None:
    """The first window, DICOM PS3.3 C.11.2.1; None where there is none or its width is not allowed."""
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if centre is None or width is None or width <= (1 if function == "LINEAR" else 0):
        return None
    if function == "SIGMOID":
        steepness = np.clip(-4 * (values.astype(np.float32) - centre) / width, -80, 80)
        return to_uint8(1 / (1 + np.exp(steepness)), 0, 1)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return to_uint8(values, centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """A window element holds nothing, a number or a list of numbers."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else value[0])
