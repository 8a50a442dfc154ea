"""Pictures are the image, small, and say why where there is none."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.report.html.pictures import SIDE, load_picture, load_pictures


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_picture_is_the_image_shrunk_to_scale(tmp_path: Path) -> None:
    grey = np.zeros((300, 600), dtype=np.uint8)
    grey[:, 300:] = 255
    Image.fromarray(grey).save(tmp_path / "a.png")
    image = decoded(load_picture(str(tmp_path / "a.png")).uri)
    assert image.size == (SIDE, SIDE // 2)
    shrunk = np.asarray(image)
    assert shrunk[:, : SIDE // 2 - 8].max() < 20
    assert shrunk[:, SIDE // 2 + 8 :].min() > 235
    Image.fromarray(grey.T).save(tmp_path / "tall.png")
    assert decoded(load_picture(str(tmp_path / "tall.png")).uri).size == (SIDE // 2, SIDE)


def test_deep_greys_are_read_as_everywhere_else(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 4095, 64), (64, 1)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    shrunk = np.asarray(decoded(load_picture(str(tmp_path / "deep.png")).uri))
    assert shrunk.shape == (64, 64)
    assert shrunk[0, 0] < 20
    assert 90 < shrunk[0, 32] < 165


def test_a_missing_and_a_damaged_file_have_a_reason_without_the_path(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    pictures = load_pictures([str(tmp_path / "gone.png"), str(tmp_path / "bad.png")])
    assert [picture.uri for picture in pictures.values()] == ["", ""]
    assert pictures[str(tmp_path / "gone.png")].reason == "no such file"
    assert all(picture.reason and str(tmp_path) not in picture.reason for picture in pictures.values())


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_shapes_give_a_picture(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / "a.png")
    assert load_picture(str(tmp_path / "a.png")).uri


def test_even_noise_stays_small_enough_for_a_page_of_a_hundred(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "noise.png")
    assert 104 * len(load_picture(str(tmp_path / "noise.png")).uri) < 5_000_000


def test_no_files_no_work() -> None:
    assert load_pictures([]) == {}
