"""Images that benchmarks/cache_build.py makes on the spot."""

import io
import struct
import zlib
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

SIDE = 2000
BITS = 12
NOISE = 8.0
"""Standard deviation in stored values of 12 bits: without noise an enlarged image would compress far too well."""


def enlarged(file: Path, seed: int) -> np.ndarray:
    """A picture as a detector's image: uint16 (2000, 2000), 12 bits, with noise."""
    with Image.open(file) as image:
        grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32)
    noise = np.random.default_rng(seed).normal(0, NOISE, grey.shape)
    return np.clip(grey * (2**BITS - 1) / 255 + noise, 0, 2**BITS - 1).astype(np.uint16)


def uncompressed_dicom(pixels: np.ndarray) -> bytes:
    """Explicit VR little endian, no window."""
    return _to_bytes(_dataset(pixels))


def compressed_dicom(pixels: np.ndarray) -> bytes:
    """Lossless JPEG 2000."""
    dataset = _dataset(pixels)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    return _to_bytes(dataset)


def jpeg(pixels: np.ndarray) -> bytes:
    """8 bits, quality 90."""
    buffer = io.BytesIO()
    Image.fromarray((pixels >> (BITS - 8)).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def renamed_copies(files: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """PNGs that differ from each other in a comment at least: distinct files, each decoded for itself."""
    folder.mkdir(parents=True)
    copies = []
    for number, file in enumerate(islice(cycle(files), count)):
        data = file.read_bytes()
        text = b"tEXtComment\0%d" % number
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        copies.append(folder / f"{number:06d}.png")
        copies[-1].write_bytes(data[:-12] + chunk + data[-12:])  # before IEND, which has 12 bytes
    return copies


def _dataset(pixels: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid(entropy_srcs=["knee"])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, BITS, BITS - 1, 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


def _to_bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
