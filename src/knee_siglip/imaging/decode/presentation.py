"""Stored DICOM values to the grey that a viewer shows first: modality step, then table or window, then 8 bits."""

import numpy as np

from knee_siglip.imaging.decode.exposure import bands, grey_range, thinned, to_uint8
from knee_siglip.imaging.decode.header import Header
from knee_siglip.imaging.decode.lookup import Table, table_in
from knee_siglip.imaging.decode.voi import WINDOW, Modality, presentations

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R 601, as Pillow's `convert("L")`."""

COLOURS = ("Red", "Green", "Blue")

PALETTE_BITS = (8, 12, 16)
"""Depths of palette entries. The descriptor's depth is of no use: 8-bit entries are often kept in 16-bit words."""


def grey_of(stored: np.ndarray, header: Header) -> np.ndarray:
    """stored: (H, W), or (H, W, 3) as RGB; header: normalised. Returns uint8 (H, W).

    Raises:
        ImageError: naming the element that is missing or unusable.
    """
    interpretation = header.dataset.PhotometricInterpretation
    if stored.ndim == 3:
        return _luma(stored, 2 ** int(header.dataset.BitsStored) - 1)
    if interpretation == "PALETTE COLOR":
        return _palette(stored, header)
    grey = _monochrome(stored, header)
    # MONOCHROME1 and INVERSE together mean one inversion: PS3.3, C.8.11.1, demands both of the same image
    if header.code("PresentationLUTShape", ("IDENTITY", "INVERSE")) == "INVERSE" or interpretation == "MONOCHROME1":
        grey = 255 - grey
    return _presented(grey, header)


def _luma(colours: np.ndarray, maximum: float) -> np.ndarray:
    grey = np.empty(colours.shape[:2], dtype=np.uint8)
    for rows in bands(grey.shape):
        grey[rows] = to_uint8(colours[rows] @ LUMA, 0, maximum)
    return grey


def _palette(stored: np.ndarray, header: Header) -> np.ndarray:
    levels, index = _levels(stored)
    if any(f"Segmented{colour}PaletteColorLookupTableData" in header.dataset for colour in COLOURS):
        from pydicom.pixels.processing import apply_color_lut

        colours = apply_color_lut(levels[None], header.dataset)[..., :3]
    else:
        colours = np.stack([_palette_table(header, colour).look_up(levels) for colour in COLOURS], axis=-1)[None]
    brightest = int(colours.max())
    white = next(2**bits - 1 for bits in PALETTE_BITS if brightest < 2**bits)
    grey: np.ndarray = _luma(colours, white)[0][index]
    return grey


def _palette_table(header: Header, colour: str) -> Table:
    name = f"{colour}PaletteColorLookupTable"
    table = table_in(header, header.dataset, name, *header.extent())
    if table is None:
        raise header.unusable(f"{name}Data")
    return table


def _levels(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(every value that the type can hold, where each pixel's value stands among them); 32-bit pixels themselves.

    What a grey is shown as depends on its value alone, so at most 65,536 values go through the arithmetic.
    """
    if stored.dtype.itemsize > 2 or stored.dtype.kind not in "ui":
        return stored.ravel(), np.arange(stored.size).reshape(stored.shape)
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    levels = np.arange(256**unsigned.itemsize, dtype=unsigned).view(stored.dtype.newbyteorder("="))
    return levels, stored.astype(stored.dtype.newbyteorder("="), copy=False).view(unsigned)


def _monochrome(stored: np.ndarray, header: Header) -> np.ndarray:
    """Stored values (H, W) to uint8, MONOCHROME1 not yet inverted.

    Without a usable table or window (none, or one that shows a single grey) 8-bit values stay and deeper ones are
    stretched.
    """
    extent = _finite_range(stored) if stored.dtype.kind == "f" else header.extent()
    modality = Modality.of(header, *extent)
    levels, index = _levels(stored)
    values = modality.apply(levels)
    if modality.known:
        for keywords, greys in presentations(values, header, *modality.extent(*extent)):
            grey: np.ndarray = greys[index]
            if grey.min() < grey.max():
                return grey
            if stored.min() < stored.max():
                header.doubt(*keywords)
    else:
        header.doubt(*(keyword for keyword in ("VOILUTSequence", *WINDOW) if keyword in header.dataset))
    if stored.dtype.itemsize == 1 and modality.table is None and modality.slope > 0:
        return to_uint8(stored, *extent)
    sample = thinned(index)
    low, high = grey_range(values[sample].astype(np.float64), _usable(levels, header)[sample])
    least = 0.0 if stored.dtype.kind == "f" else 255 * abs(modality.slope)
    return np.take(to_uint8(values[None], low, max(high, low + least))[0], index)


def _finite_range(stored: np.ndarray) -> tuple[float, float]:
    finite = stored[np.isfinite(stored)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _usable(levels: np.ndarray, header: Header) -> np.ndarray:
    """False for the values that pad the image (PS3.3, C.7.5.1.1.2)."""
    ends = [header.whole(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    numbers = [end for end in ends if end is not None]
    if not numbers:
        return np.ones(levels.shape, dtype=bool)
    if levels.dtype == np.int16:  # -2000 is often written as unsigned, 63536
        numbers = [(number + 2**15) % 2**16 - 2**15 for number in numbers]
    outside: np.ndarray = (levels < min(numbers)) | (levels > max(numbers))
    return outside


def _presented(grey: np.ndarray, header: Header) -> np.ndarray:
    """The Presentation LUT (PS3.3, C.11.6), from the first entry for black to the last for white, where there is one.

    grey: uint8 (H, W), and so is what is returned.
    """
    for item in header.items("PresentationLUTSequence")[:1]:
        table = table_in(header, item, "LUT", 0, 2**16 - 1)
        if table is not None and table.entries.any():
            positions = table.first + np.linspace(0, len(table.entries) - 1, 256)
            presented: np.ndarray = to_uint8(table.look_up(positions)[None], 0, float(table.entries.max()))[0][grey]
            return presented
        header.doubt("PresentationLUTSequence")
    return grey
