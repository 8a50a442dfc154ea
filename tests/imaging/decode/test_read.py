import os
import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knee_siglip.imaging.decode.exposure import exposed_field
from knee_siglip.imaging.decode.read import ImageError, MissingImageError, decode, read_bytes, read_grey
from knee_siglip.imaging.fit.transform import Transform, load_pixels

RAMP = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_8_bit_grey_is_left_alone(save, name):
    narrow = (RAMP // 4 + 50).astype(np.uint8)
    assert np.array_equal(read_grey(save(narrow, name)), narrow)


def test_jpeg_is_nearly_left_alone(save):
    assert np.abs(read_grey(save(RAMP, "a.jpg", quality=95)).astype(int) - RAMP).max() < 8


def test_grey_stored_as_rgb_is_the_same_grey(save):
    assert np.array_equal(read_grey(save(np.dstack([RAMP] * 3))), RAMP)


def test_colours_become_luma(save):
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert (read_grey(save(red)) == 76).all()


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.uint16), ("b.tif", ">u2")])
def test_16_bit_is_scaled_not_clipped(save, name, dtype):
    deep = RAMP.astype(np.uint16) * 257
    image = (
        Image.fromarray(deep)
        if dtype == np.uint16
        else Image.frombytes("I;16B", (16, 16), deep.astype(">u2").tobytes())
    )
    assert np.abs(read_grey(save(image, name)).astype(int) - RAMP).max() <= 1


def test_12_bits_in_a_16_bit_file_fill_the_range(save):
    grey = read_grey(save(RAMP.astype(np.uint16) * 16))
    assert grey.min() == 0
    assert grey.max() == 255


def test_one_hot_pixel_does_not_darken_a_16_bit_image(save):
    deep = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    deep[5, 5] = 65535
    assert np.median(read_grey(save(deep))) == pytest.approx(127, abs=2)


def test_noise_of_a_flat_16_bit_image_is_not_blown_up(save):
    noise = np.random.default_rng(0).integers(30000, 30004, (32, 32)).astype(np.uint16)
    assert np.ptp(read_grey(save(noise))) <= 4


def test_32_bit_integer_and_float_tiffs_are_scaled(save):
    for values in (RAMP.astype(np.int32) * 1000, RAMP.astype(np.float32) / 255):
        assert np.abs(read_grey(save(values, "a.tif")).astype(int) - RAMP).max() <= 1


def test_float_tiff_survives_nan_and_infinity(save):
    values = RAMP.astype(np.float32)
    values[0, 0], values[15, 15] = np.nan, np.inf
    grey = read_grey(save(values, "a.tif"))
    assert grey[15, 15] == 255
    assert grey[0, 0] == 0


def knee(side: int = 300) -> np.ndarray:
    """Bone in soft tissue in air, 12 bits with noise."""
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    tissue = 2600 * np.exp(-((across / 0.55) ** 4)) + 900 * np.exp(-((across / 0.25) ** 2)) * (1 - 0.6 * np.abs(down))
    return tissue + 300 + np.random.default_rng(0).normal(0, 5, (side, side))


@pytest.mark.parametrize("border", [0, 65535, 4095, 150])
@pytest.mark.parametrize("angle", [0, 7])
@pytest.mark.parametrize("noise", [0, 8])
def test_collimator_border_does_not_set_the_window(save, border, angle, noise):
    inside = Image.new("L", (300, 300), 0)
    inside.paste(255, (30, 24, 270, 280))
    field = np.asarray(inside.rotate(angle)) > 127
    shade = (border + np.random.default_rng(1).normal(0, noise, field.shape)).clip(0, 65535)
    bordered = np.where(field, knee(), shade).astype(np.uint16)
    open_grey, grey = read_grey(save(knee().astype(np.uint16), "open.png")), read_grey(save(bordered))
    assert np.abs(grey.astype(int) - open_grey)[field].mean() < 4
    assert np.ptp(grey[field].astype(int)) > 245


def test_padding_around_a_collimator_does_not_set_the_window(save):
    nested = np.full((300, 300), 65535, dtype=np.uint16)
    nested[20:280, 20:280] = 100
    nested[50:250, 50:250] = knee()[50:250, 50:250]
    inside, grey = read_grey(save(nested[50:250, 50:250], "inside.png")), read_grey(save(nested))
    assert np.abs(grey[50:250, 50:250].astype(int) - inside).mean() < 6


def test_letters_in_the_border_do_not_set_the_window():
    bordered = np.zeros((300, 300))
    bordered[40:260, 40:260] = knee()[40:260, 40:260]
    bordered[10:20, 10:40] = 65535
    field = exposed_field(bordered)
    assert not field[:30].any()
    assert field[60:240, 60:240].mean() > 0.95


def test_flat_image_is_all_exposed():
    assert exposed_field(np.full((64, 64), 7)).all()


def test_bilevel_is_black_and_white(save):
    grey = read_grey(save(Image.fromarray(RAMP > 127)))
    assert set(np.unique(grey)) == {0, 255}


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_parts_are_black(save, mode):
    alpha = np.full_like(RAMP, 255)
    alpha[:, :4] = 0
    layers = [RAMP, alpha] if mode == "LA" else [RAMP, RAMP, RAMP, alpha]
    grey = read_grey(save(Image.merge(mode, [Image.fromarray(layer) for layer in layers])))
    assert (grey[:, :4] == 0).all()
    assert np.array_equal(grey[:, 4:], RAMP[:, 4:])


def test_palette_shows_its_colours_not_its_numbers(save):
    image = Image.fromarray(RAMP).convert("P")
    image.putpalette([255 - level for level in range(256) for _ in range(3)])
    assert np.array_equal(read_grey(save(image)), 255 - RAMP)


def test_palette_with_a_transparent_entry(save):
    image = Image.fromarray(np.array([[0, 1], [1, 1]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([200, 200, 200, 100, 100, 100])
    assert read_grey(save(image, transparency=0)).tolist() == [[0, 100], [100, 100]]


def test_cmyk_is_read(save):
    grey = read_grey(save(Image.fromarray(np.dstack([RAMP] * 3)).convert("CMYK"), "a.tif"))
    assert np.abs(grey.astype(int) - RAMP).max() <= 1


def test_exif_orientation_is_applied(save):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = np.zeros((32, 64), dtype=np.uint8)
    lying[:, :8] = 255
    grey = read_grey(save(lying, "a.jpg", exif=exif, quality=95))
    assert grey.shape == (64, 32)
    assert grey[:4].mean() > 200


@pytest.mark.parametrize(
    ("image", "name", "bits"),
    [
        (RAMP, "a.png", 8),
        (RAMP.astype(np.uint16), "b.png", 16),
        (RAMP.astype(np.float32), "c.tif", 32),
        (RAMP > 9, "d.png", 1),
    ],
)
def test_bits_of_the_file_are_told(save, image, name, bits):
    path = save(image, name)
    assert decode(path.read_bytes(), path).bits == bits


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        read_grey(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "no.png", "no such file")


def test_folder_is_refused(tmp_path):
    assert_refused(tmp_path, "cannot be read")


def test_name_that_no_file_can_have_is_refused(tmp_path):
    with pytest.raises(ImageError, match="cannot be read") as caught:
        read_grey(tmp_path / ("x" * 5000))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert_refused(path, "empty")


@pytest.mark.parametrize("text", [b"this is a report", b"\x89PNG\r\n\x1a\n", b"\0" * 400])
def test_what_is_no_image_is_refused(tmp_path, text):
    path = tmp_path / "image.png"
    path.write_bytes(text)
    assert_refused(path, "no image|damaged")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_truncated_file_is_refused(save, name, kept):
    path = save(np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8), name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert_refused(path, "damaged|no image")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_changed_byte_of_a_png_is_refused_or_changes_no_pixel(save, dtype):
    """Pillow alone passes over the checksums of pixel chunks."""
    path = save(np.arange(24 * 32).reshape(24, 32).astype(dtype), "a.png")
    data, grey = path.read_bytes(), read_grey(path)
    for position in range(len(data)):
        try:
            read = decode(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :], path).grey
        except ImageError:
            continue
        assert np.array_equal(read, grey), position


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 11_000, 11_000, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    assert_refused(path, "pixels")


def test_load_pixels_is_read_then_transform(save):
    transform = Transform(28, "pad", "local")
    path = save(RAMP)
    assert np.array_equal(load_pixels(path, transform), transform(read_grey(path)))


@pytest.mark.parametrize(
    ("there", "asked", "hint"),
    [
        ("Knee.PNG", "knee.png", "did you mean Knee.PNG?"),
        ("knee.jpg", "knee.png", "did you mean knee.jpg?"),
        ("knee.png", "knee", "did you mean knee.png?"),
        (unicodedata.normalize("NFD", "rodilla_é.png"), unicodedata.normalize("NFC", "rodilla_é.png"), "did you mean"),
        ("knee.png", "hip.png", None),
        ("knee.png", "gone/knee.png", "its folder does not exist either"),
        ("knee.png", "~/knee.png", "~ is not expanded: write the folder in full"),
    ],
)
def test_a_missing_file_is_told_with_the_likely_reason(tmp_path, there, asked, hint):
    (tmp_path / there).write_bytes(b"x")
    with pytest.raises(MissingImageError, match="no such file") as caught:
        read_bytes(tmp_path / asked)
    assert str(caught.value).partition("no such file")[2].startswith(f"; {hint}" if hint else "")
    assert hint or str(caught.value).endswith("no such file")


def test_a_file_that_came_later_is_suggested(tmp_path):
    for name in ("first.png", "second.png"):
        (tmp_path / name.upper()).write_bytes(b"x")
        os.utime(tmp_path, ns=(len(name), len(name)))
        with pytest.raises(MissingImageError, match=f"did you mean {name.upper()}"):
            read_bytes(tmp_path / name)
