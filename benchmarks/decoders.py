"""The decoders that benchmarks/cache_build.py compares: bytes of a file to an array, with the licence of each.

OpenCV is left out: its wheels bring FFmpeg under the LGPL.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Decoder:
    """decode: a file's bytes to its pixels. module: what must be installed for it."""

    name: str
    licence: str
    module: str
    decode: Callable[[bytes], Any]
    reads_jpeg: bool = False

    def is_installed(self) -> bool:
        """Whether the module can be imported."""
        return find_spec(self.module) is not None


def _pillow(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _imagecodecs(data: bytes) -> Any:
    import imagecodecs

    return imagecodecs.jpeg8_decode(data) if data.startswith(b"\xff\xd8") else imagecodecs.png_decode(data)


def _imagecodecs_spng(data: bytes) -> Any:
    import imagecodecs

    return imagecodecs.spng_decode(data)


def _pyspng(data: bytes) -> Any:
    import pyspng

    return pyspng.load(data)


def _wuffs(data: bytes) -> Any:
    from pywuffs import ImageDecoderType, PixelFormat
    from pywuffs.aux import ImageDecoder, ImageDecoderConfig

    config = ImageDecoderConfig()
    config.enabled_decoders, config.pixel_format = [ImageDecoderType.PNG], PixelFormat.Y
    return ImageDecoder(config).decode(data).pixbuf


def _kornia(data: bytes) -> Any:
    from kornia_rs import io as kornia

    if data.startswith(b"\xff\xd8"):
        return kornia.decode_image_jpegturbo(data, "mono")
    shape = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    return kornia.decode_image_png_u8(data, shape, "mono")


def _pydicom(plugin: str, data: bytes) -> Any:
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data))
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.pixel_array_options(decoding_plugin=plugin)
    return dataset.pixel_array


def _imagecodecs_dicom(data: bytes) -> Any:
    import imagecodecs
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    return imagecodecs.jpeg2k_decode(get_frame(dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1))


PNG_DECODERS = (
    Decoder("kornia_rs", "Apache-2.0", "kornia_rs", _kornia, reads_jpeg=True),
    Decoder("Pillow", "MIT-CMU", "PIL", _pillow, reads_jpeg=True),
    Decoder("imagecodecs", "BSD-3-Clause", "imagecodecs", _imagecodecs, reads_jpeg=True),
    Decoder("imagecodecs spng", "BSD-3-Clause", "imagecodecs", _imagecodecs_spng),
    Decoder("pyspng", "MIT", "pyspng", _pyspng),
    Decoder("pywuffs", "MIT", "pywuffs", _wuffs),
)

DICOM_DECODERS = (
    Decoder("pylibjpeg-openjpeg", "MIT", "openjpeg", partial(_pydicom, "pylibjpeg")),
    Decoder("gdcm", "BSD-3-Clause", "gdcm", partial(_pydicom, "gdcm")),
    Decoder("imagecodecs", "BSD-3-Clause", "imagecodecs", _imagecodecs_dicom),
)
