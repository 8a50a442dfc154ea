"""Stored DICOM values to the grey that a viewer shows first: modality step, then table or window, then 8 bits."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from knee_siglip.imaging.decode.exposure import bands, grey_range, thinned, to_uint8

if TYPE_CHECKING:
    from pydicom import Dataset

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R 601, as Pillow's `convert("L")`."""


def grey_of(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """stored: (H, W), or (H, W, 3) as RGB. Returns uint8 (H, W)."""
    if stored.ndim == 3:
        return _luma(stored, 2 ** int(dataset.BitsStored) - 1)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return _palette(stored, dataset)
    grey = _monochrome(stored, dataset)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _luma(colours: np.ndarray, maximum: float) -> np.ndarray:
    grey = np.empty(colours.shape[:2], dtype=np.uint8)
    for rows in bands(grey.shape):
        grey[rows] = to_uint8(colours[rows] @ LUMA, 0, maximum)
    return grey


def _palette(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    from pydicom.pixels.processing import apply_color_lut

    levels, index = _levels(stored)
    colours = apply_color_lut(levels[None], dataset)[..., :3]
    grey: np.ndarray = _luma(colours, np.iinfo(colours.dtype).max)[0][index]
    return grey


def _levels(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(every value that the type can hold, where each pixel's value stands among them); 32-bit pixels themselves.

    What a grey is shown as depends on its value alone, so at most 65,536 values go through the arithmetic.
    """
    if stored.dtype.itemsize > 2 or stored.dtype.kind not in "ui":
        return stored.ravel(), np.arange(stored.size).reshape(stored.shape)
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    levels = np.arange(256**unsigned.itemsize, dtype=unsigned).view(stored.dtype.newbyteorder("="))
    return levels, stored.astype(stored.dtype.newbyteorder("="), copy=False).view(unsigned)


def _monochrome(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Stored values (H, W) to uint8, MONOCHROME1 not yet inverted.

    Without a usable window (none, or one that shows a single grey) 8-bit values stay and deeper ones are stretched.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    slope = _slope(dataset)
    levels, index = _levels(stored)
    values: np.ndarray = apply_modality_lut(levels, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        table: np.ndarray | None = to_uint8(apply_voi(values, dataset)[None], 0, 2**bits - 1)[0]
    else:
        table = _window(values, dataset)
    if table is not None:
        grey: np.ndarray = table[index]
        if grey.min() < grey.max():
            return grey
    bits = int(dataset.BitsStored)
    if bits <= 8 and stored.dtype.itemsize == 1 and slope > 0 and not dataset.get("ModalityLUTSequence"):
        low = -(2 ** (bits - 1)) if stored.dtype.kind == "i" else 0
        return to_uint8(stored, low, low + 2**bits - 1)
    sample = thinned(index)
    low, high = grey_range(values[sample].astype(np.float64), _usable(levels, dataset)[sample])
    table = to_uint8(values[None], low, max(high, low + 255 * abs(slope)))[0]
    return np.take(table, index)


def _slope(dataset: "Dataset") -> float:
    """The rescale slope; 1 where there is none. ValueError for one that leaves no image."""
    value = dataset.get("RescaleSlope")
    slope = 1.0 if value is None or value == "" else float(value)
    if slope == 0 or not math.isfinite(slope):
        raise ValueError("rescale slope")
    return slope


def _usable(levels: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """False for the values that pad the image (PS3.3, C.7.5.1.1.2)."""
    ends = [dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    numbers = [end for end in ends if isinstance(end, int)]
    if not numbers:
        return np.ones(levels.shape, dtype=bool)
    outside: np.ndarray = (levels < min(numbers)) | (levels > max(numbers))
    return outside


def _window(values: np.ndarray, dataset: "Dataset") -> np.ndarray | None:
    """The first window, DICOM PS3.3 C.11.2.1; None where there is none or its width is not allowed.

    values: (N,); returns uint8 (N,).
    """
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = dataset.get("VOILUTFunction")
    if function not in ("SIGMOID", "LINEAR_EXACT"):
        function = "LINEAR"
    if centre is None or width is None or not width > (1 if function == "LINEAR" else 0):
        return None
    if function == "SIGMOID":
        steepness = np.clip(-4 * (values.astype(np.float64) - centre) / width, -80, 80)
        return to_uint8(1 / (1 + np.exp(steepness))[None], 0, 1)[0]
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    return to_uint8(values[None], centre - width / 2, centre + width / 2)[0]


def _first(value: Any) -> float | None:
    """A window element holds nothing, a number or a list of numbers."""
    if value is None or value == "":
        return None
    if isinstance(value, (int, float, str)):
        return float(value)
    return float(value[0]) if len(value) else None
