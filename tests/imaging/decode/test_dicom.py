import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from knee_siglip.imaging.decode.read import ImageError, decode, read_grey

RAMP = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
STORED = RAMP.astype(np.uint16) * 16


def test_monochrome2_without_window_fills_the_range(save_dicom):
    assert np.abs(read_grey(save_dicom(STORED)).astype(int) - RAMP).max() <= 1


def test_monochrome1_is_inverted(save_dicom):
    grey = read_grey(save_dicom(STORED, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(grey.astype(int) - (255 - RAMP)).max() <= 1


def test_8_bit_without_window_is_left_alone(save_dicom):
    narrow = (RAMP // 4 + 50).astype(np.uint8)
    assert np.array_equal(read_grey(save_dicom(narrow, bits=8)), narrow)


def test_window_clips_and_scales(save_dicom):
    grey = read_grey(save_dicom(STORED, WindowCenter="1000.5", WindowWidth="1001"))
    expected = np.clip((STORED.astype(float) - 500) / 1000 * 255, 0, 255)
    assert np.abs(grey - expected).max() <= 1


def test_first_of_several_windows_is_taken(save_dicom):
    several = read_grey(save_dicom(STORED, WindowCenter=["1000", "3000"], WindowWidth=["800", "100"]))
    one = read_grey(save_dicom(STORED, WindowCenter="1000", WindowWidth="800"))
    assert np.array_equal(several, one)


def test_window_counts_in_rescaled_values(save_dicom):
    rescaled = save_dicom(STORED, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="1900", WindowWidth="1601")
    plain = save_dicom(STORED, "b.dcm", WindowCenter="1000", WindowWidth="801")
    assert np.abs(read_grey(rescaled).astype(int) - read_grey(plain)).max() <= 1


def test_sigmoid_window(save_dicom):
    path = save_dicom(STORED, WindowCenter="2048", WindowWidth="1000", VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (STORED.astype(float) - 2048) / 1000))
    assert np.abs(read_grey(path) - expected).max() <= 1


@pytest.mark.parametrize(("centre", "width"), [("2000", "0"), ("2000", "-5"), ("90000", "10")])
def test_window_that_shows_nothing_is_passed_over(save_dicom, centre, width):
    assert np.ptp(read_grey(save_dicom(STORED, WindowCenter=centre, WindowWidth=width))) == 255


def test_voi_table_is_applied(save_dicom):
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = np.linspace(65535, 0, 4096).astype("<u2").tobytes()
    grey = read_grey(save_dicom(STORED, VOILUTSequence=[table]))
    assert np.abs(grey.astype(int) - (255 - RAMP)).max() <= 1


def test_signed_values(save_dicom):
    signed = STORED.astype(np.int16) - 2048
    assert np.abs(read_grey(save_dicom(signed)).astype(int) - RAMP).max() <= 1


def test_rgb(save_dicom):
    path = save_dicom(np.dstack([RAMP] * 3), bits=8, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.abs(read_grey(path).astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
def test_compressed_pixels_are_decoded(save_dicom, syntax):
    from pydicom import dcmread

    path = save_dicom(np.kron(STORED, np.ones((8, 8), dtype=np.uint16)))
    expected = read_grey(path)
    dataset = dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    assert np.array_equal(read_grey(path), expected)


def test_dicom_is_known_by_content_and_old_ones_by_ending(save_dicom, tmp_path):
    path = save_dicom(STORED)
    expected = read_grey(path)
    renamed = path.rename(tmp_path / "IM0001")
    assert np.array_equal(read_grey(renamed), expected)


def test_bits_stored_are_told(save_dicom):
    path = save_dicom(STORED)
    assert decode(path.read_bytes(), path).bits == 12


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"PixelData": None}, "without .complete. pixel data"),
        ({"NumberOfFrames": 4}, "4 frames"),
        ({"Rows": 17}, "cannot be decoded"),
    ],
)
def test_dicom_that_is_no_radiograph_is_refused(save_dicom, elements, reason):
    path = save_dicom(STORED, **elements)
    with pytest.raises(ImageError, match=reason) as caught:
        read_grey(path)
    assert str(path) in str(caught.value)


def test_damaged_dicom_is_refused_without_header_text(save_dicom):
    path = save_dicom(STORED, PatientName="Doe^Jane", StudyDescription="severe gonarthrosis")
    data = path.read_bytes()
    for size in (140, 300, len(data) - 100):
        path.write_bytes(data[:size])
        with pytest.raises(ImageError) as caught:
            read_grey(path)
        assert "Doe" not in str(caught.value)
        assert "gonarthrosis" not in str(caught.value)


def test_text_file_called_dcm_is_refused(tmp_path):
    path = tmp_path / "notes.dcm"
    path.write_text("not a DICOM at all")
    with pytest.raises(ImageError, match=r"notes\.dcm"):
        read_grey(path)
