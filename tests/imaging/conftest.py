"""Image files made on the spot."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
