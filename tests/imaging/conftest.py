"""Image files made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

RAMP = np.linspace(0, 255, 16 * 16).astype(np.uint8).reshape(16, 16)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save an array or a Pillow image; the name's ending chooses the format."""

    def save_image(image: np.ndarray | Image.Image, name: str = "image.png", **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        picture.save(path, **options)
        return path

    return save_image


@pytest.fixture
def save_dicom(tmp_path: Path) -> Callable[..., Path]:
    """A little-endian DICOM of the stored values; keywords are elements, None takes one out."""

    def save_dataset(stored: np.ndarray, name: str = "image.dcm", bits: int = 12, **elements) -> Path:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        dataset.Rows, dataset.Columns = stored.shape[:2]
        dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated = stored.dtype.itemsize * 8
        dataset.BitsStored = bits
        dataset.HighBit = bits - 1
        dataset.PixelRepresentation = int(stored.dtype.kind == "i")
        dataset.PixelData = stored.tobytes()
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        path = tmp_path / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    return save_dataset
