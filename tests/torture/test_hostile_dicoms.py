"""Bad, odd and hostile DICOM files: each is read right, or refused in one sentence that quotes no header."""

import io
import logging
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import gdcm
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from knee_siglip.imaging.decode.read import ImageError, decode

RAMP = np.linspace(0, 255, 48 * 64).astype(np.uint8).reshape(48, 64)
STORED = RAMP.astype(np.uint16) * 16
NAME, DIAGNOSIS = "Doe^Jane", "severe gonarthrosis"
GDCM = gdcm.TransferSyntax


def dicom(stored: np.ndarray, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **elements) -> Dataset:
    """A radiograph's data set with a planted name and diagnosis; keywords are elements, None takes one out."""
    dataset = FileDataset("", {}, preamble=bytes(128))
    dataset.file_meta = FileMetaDataset()
    changed(dataset.file_meta, TransferSyntaxUID=syntax)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.PatientName, dataset.PatientID, dataset.OtherPatientNames = NAME, NAME, NAME
    dataset.StudyDescription, dataset.ImageComments = DIAGNOSIS, DIAGNOSIS
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = stored.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    return changed(dataset, **elements)


def changed(dataset: Dataset, **elements) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
    return dataset


def written(dataset: Dataset, **options) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(stream, **options)
    return stream.getvalue()


def make(*arguments, **elements) -> Callable[[], bytes]:
    return lambda: written(dicom(*arguments, **elements))


def compressed(syntax: str, dataset: Dataset, **options) -> bytes:
    dataset.compress(syntax, generate_instance_uid=False, **options)
    return written(dataset)


def by_gdcm(syntax: int, folder: Path, dataset: Dataset) -> bytes:
    """JPEG, which pydicom does not write."""
    path = folder / "plain.dcm"
    path.write_bytes(written(dataset))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(GDCM(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path.read_bytes()


def frame_of(syntax: str, frame: bytes, **elements) -> Callable[[], bytes]:
    def build() -> bytes:
        dataset = dicom(RAMP, 8, syntax, PixelData=encapsulate([frame]), **elements)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        return written(dataset)

    return build


def coloured(interpretation: str, pixels: np.ndarray, planar: int = 0, **elements) -> Callable[[], bytes]:
    elements = {"PhotometricInterpretation": interpretation, "PlanarConfiguration": planar, **elements}
    return make(pixels, 8, **elements)


def jpeg(grey: np.ndarray = RAMP) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=100)
    return stream.getvalue()


def jpeg_2000(grey: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG2000", no_jp2=True)
    return stream.getvalue()


def padded(count: int) -> Dataset:
    dataset = dicom(STORED)
    dataset.PixelData += bytes(count)
    return dataset


def padded_below() -> bytes:
    dataset = dicom(np.where(np.arange(64) < 20, -2000, RAMP.astype(np.int16)), 16)
    dataset.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    return written(dataset)


def big_endian_table() -> bytes:
    made = dicom(STORED.astype(">u2"), syntax=ExplicitVRBigEndian)
    made.VOILUTSequence = [table([4096, 0, 16], DARK, ">u2")]
    plain = Dataset(made)  # a FileDataset keeps its byte order
    plain.file_meta = made.file_meta
    return written(plain, little_endian=False, implicit_vr=False)


def offsets_of_fragments() -> bytes:
    """One frame in three fragments under an offset table that lists each: some writers' mistake."""
    frame = jpeg_2000(RAMP)
    third = len(frame) // 6 * 2
    return frames_of(JPEG2000Lossless, frame[:third], frame[third : 2 * third], frame[2 * third :])()


def table(descriptor: list[int], data: np.ndarray, dtype: str = "<u2") -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [number & 0xFFFF for number in descriptor]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = np.rint(data).astype(dtype).tobytes()
    item["LUTData"].VR = "OW"
    return item


def spelt(keyword: str, raw: bytes, dataset: Dataset | None = None, **elements) -> Callable[[], bytes]:
    """A data set with an element's bytes as pydicom would never write them."""

    def build() -> bytes:
        made = dicom(STORED, **{keyword: "9" * len(raw), **elements}) if dataset is None else dataset
        data = written(made)
        assert data.count(b"9" * len(raw)) == 1
        return data.replace(b"9" * len(raw), raw)

    return build


def palette(descriptor: list[int], data: np.ndarray, stored: np.ndarray = RAMP, bits: int = 8) -> Callable[[], bytes]:
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = descriptor
        elements[f"{colour}PaletteColorLookupTableData"] = data.tobytes()
    return make(stored, bits, **elements)


def frames_of(syntax: str, *frames: bytes, grey: np.ndarray = RAMP, has_bot: bool = True, **options):
    def build() -> bytes:
        dataset = dicom(grey, 8, syntax, PixelData=encapsulate(list(frames), has_bot=has_bot, **options))
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        return written(dataset)

    return build


def floating(keyword: str, values: np.ndarray, **elements) -> Callable[[], bytes]:
    absent = dict.fromkeys(("PixelData", "BitsStored", "HighBit", "PixelRepresentation"))
    bits = values.dtype.itemsize * 8
    return make(STORED, **absent, **{keyword: values.tobytes()}, BitsAllocated=bits, **elements)


GARBAGE = STORED | (np.indices((48, 64)).sum(axis=0) % 16 << 12).astype(np.uint16)
SIGNED = STORED.astype(np.int16) - 2048
YBR = np.dstack([RAMP, RAMP * 0 + 128, RAMP * 0 + 128])
CLIPPED = np.clip((STORED - 1024.0) / 2047 * 255, 0, 255)
YBR_422 = np.stack([RAMP[:, ::2], RAMP[:, 1::2], RAMP[:, ::2] * 0 + 128, RAMP[:, ::2] * 0 + 128], axis=-1)
PADDED = np.where(np.arange(64) < 20, 65535, STORED).astype(np.uint16)
LINEAR = np.clip((STORED - 1500.0) / 999 * 255, 0, 255)
WINDOW = {"WindowCenter": "2000", "WindowWidth": "1000"}
INVERTED = np.linspace(65535, 0, 4096)
DARK = np.linspace(4095, 0, 4096)
BYTES = np.linspace(255, 0, 4096)
RISING = np.linspace(0, 65535, 65536)
FULL = RAMP.astype(np.uint16) * 257
FULL_SIGNED = (FULL.astype(np.int32) - 32768).astype(np.int16)
NAN = np.where(np.arange(64) == 5, np.nan, RAMP / 255).astype(np.float32)


def voi(*arguments, stored: np.ndarray = STORED, bits: int = 12, **elements) -> Callable[[], bytes]:
    return make(stored, bits, VOILUTSequence=[table(*arguments)], **elements)


def modality(*arguments, stored: np.ndarray = STORED, bits: int = 12, **elements) -> Callable[[], bytes]:
    return make(stored, bits, ModalityLUTSequence=[table(*arguments)], **elements)


READ: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    # name: (makes the bytes, expected grey, greys that it may differ by)
    "monochrome1": (make(STORED, PhotometricInterpretation="MONOCHROME1"), 255 - RAMP, 2),
    "window": (make(STORED, **WINDOW), LINEAR, 1),
    "several-windows": (make(STORED, WindowCenter=["2000", "9"], WindowWidth=["1000", "9"]), LINEAR, 1),
    "linear-exact": (make(STORED, VOILUTFunction="LINEAR_EXACT", **WINDOW), LINEAR, 1),
    "sigmoid": (
        make(STORED, VOILUTFunction="SIGMOID", **WINDOW),
        255 / (1 + np.exp(-4 * (STORED - 2000.0) / 1000)),
        1,
    ),
    "unknown-function-is-linear": (make(STORED, VOILUTFunction=NAME, **WINDOW), LINEAR, 1),
    "voi-table": (make(STORED, VOILUTSequence=[table([4096, 0, 16], INVERTED)]), 255 - RAMP, 1),
    "modality-table": (make(STORED, ModalityLUTSequence=[table([4096, 0, 16], INVERTED)]), 255 - RAMP, 2),
    "negative-rescale": (make(STORED, RescaleSlope="-1", RescaleIntercept="500"), 255 - RAMP, 2),
    "negative-values": (
        make(STORED, RescaleSlope="1", RescaleIntercept="-3000", WindowCenter="-1000", WindowWidth="1000"),
        LINEAR,
        1,
    ),
    "8-bit-negative-rescale": (make(RAMP, 8, RescaleSlope="-1", RescaleIntercept="255"), 255 - RAMP, 2),
    "signed": (make(SIGNED), RAMP, 2),
    "signed-garbage": (make((SIGNED & 0xFFF | 0x5000).astype(np.int16)), RAMP, 2),
    "unsigned-garbage": (make(GARBAGE), RAMP, 2),
    "overlay-in-the-high-bit": (make(STORED | 0x8000, **WINDOW), LINEAR, 1),
    "high-bit-15": (make(STORED << 4 | 7, HighBit=15), RAMP, 2),
    "6-bits-in-8": (make(RAMP >> 2, 6), RAMP, 3),
    "1-bit": (
        make(np.packbits(RAMP > 99, axis=1, bitorder="little"), 1, BitsAllocated=1, Columns=64),
        255 * (RAMP > 99),
        0,
    ),
    "32-bit": (make(STORED.astype(np.uint32) << 12, 24), RAMP, 2),
    "padding": (make(PADDED, 16, PixelPaddingValue=65535), None, 0),
    "voi-table-of-12-bits-that-says-16": (voi([4096, 0, 16], DARK), 255 - RAMP, 1),
    "voi-table-of-12-bits-that-says-8": (voi([4096, 0, 8], DARK), 255 - RAMP, 1),
    "voi-table-of-8-bits-in-words": (voi([4096, 0, 8], BYTES), 255 - RAMP, 1),
    "voi-table-of-8-bits-packed": (voi([4096, 0, 8], BYTES, "u1"), 255 - RAMP, 1),
    "voi-table-after-a-first-value": (voi([2048, 1024, 12], np.linspace(0, 4095, 2048)), CLIPPED, 1),
    "voi-table-signed": (voi([4096, -2048, 16], DARK, stored=SIGNED), 255 - RAMP, 1),
    "voi-table-signed-16-bit": (voi([0, -32768, 16], RISING, stored=FULL_SIGNED, bits=16), RAMP, 1),
    "voi-table-unsigned-16-bit": (voi([0, 0, 16], RISING, stored=FULL, bits=16), RAMP, 1),
    "voi-table-of-rescaled-values": (
        voi([4096, -1024, 16], DARK, RescaleSlope="1", RescaleIntercept="-1024"),
        255 - RAMP,
        1,
    ),
    "voi-table-monochrome1": (voi([4096, 0, 16], DARK, PhotometricInterpretation="MONOCHROME1"), RAMP, 1),
    "voi-table-too-short": (voi([4096, 0, 16], DARK[:1000]), RAMP, 2),
    "voi-table-of-zeros": (voi([4096, 0, 16], DARK * 0), RAMP, 2),
    "second-voi-table": (
        make(STORED, VOILUTSequence=[table([4096, 0, 16], DARK[:9]), table([4096, 0, 16], DARK)]),
        255 - RAMP,
        1,
    ),
    "voi-table-and-window": (voi([4096, 0, 16], DARK, **WINDOW), 255 - RAMP, 1),
    "voi-table-big-endian": (big_endian_table, 255 - RAMP, 1),
    "modality-table-of-12-bits": (modality([4096, 0, 12], DARK), 255 - RAMP, 2),
    "modality-table-of-8-bits-packed": (modality([4096, 0, 8], BYTES, "u1"), 255 - RAMP, 2),
    "modality-table-signed-16-bit": (modality([0, -32768, 16], RISING, stored=FULL_SIGNED, bits=16), RAMP, 2),
    "modality-table-signed-first-as-unsigned": (modality([4096, 63488, 16], DARK, stored=SIGNED), 255 - RAMP, 2),
    "modality-table-and-window": (
        modality([4096, 0, 16], np.arange(4096) + 1000, WindowCenter="3000", WindowWidth="1000"),
        LINEAR,
        1,
    ),
    "presentation-table": (make(STORED, PresentationLUTSequence=[table([256, 0, 12], DARK[::16])]), 255 - RAMP, 2),
    "presentation-shape-inverse": (make(STORED, PresentationLUTShape="INVERSE"), 255 - RAMP, 2),
    "presentation-shape-inverse-monochrome1": (
        make(STORED, PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1"),
        255 - RAMP,
        2,
    ),
    "presentation-shape-identity": (make(STORED, PresentationLUTShape="IDENTITY"), RAMP, 2),
    "presentation-shape-unknown": (make(STORED, PresentationLUTShape=NAME.upper()), RAMP, 2),
    "lone-negative-slope": (make(STORED, RescaleSlope="-1"), 255 - RAMP, 2),
    "lone-intercept-and-window": (
        make(STORED, RescaleIntercept="-1000", WindowCenter="1000", WindowWidth="1000"),
        LINEAR,
        1,
    ),
    "empty-rescale": (make(STORED, RescaleSlope="", RescaleIntercept="", **WINDOW), LINEAR, 1),
    "intercept-with-a-comma": (spelt("RescaleIntercept", b"-1024,00", RescaleSlope="1", **WINDOW), RAMP, 2),
    "centre-with-a-comma": (spelt("WindowCenter", b"2000,500", WindowWidth="1000"), RAMP, 2),
    "centre-not-a-number": (spelt("WindowCenter", b"1.#QNAN0", WindowWidth="1000"), RAMP, 2),
    "width-not-a-number": (spelt("WindowWidth", b"nan     ", WindowCenter="2000"), RAMP, 2),
    "negative-width": (make(STORED, WindowCenter="2000", WindowWidth="-1000"), RAMP, 2),
    "empty-first-window": (spelt("WindowCenter", b"\\2000   ", WindowWidth=["9", "1000"]), LINEAR, 1),
    "empty-first-centre": (spelt("WindowCenter", b"\\2000   ", WindowWidth="1000"), RAMP, 2),
    "more-centres-than-widths": (make(STORED, WindowCenter=["2000", "9"], WindowWidth="1000"), LINEAR, 1),
    "empty-window": (make(STORED, WindowCenter="", WindowWidth=""), RAMP, 2),
    "lower-case-function": (
        make(STORED, VOILUTFunction="sigmoid", **WINDOW),
        255 / (1 + np.exp(-4 * (STORED - 2000.0) / 1000)),
        1,
    ),
    "lower-case-interpretation": (make(STORED, PhotometricInterpretation="monochrome1"), 255 - RAMP, 2),
    "no-interpretation": (make(STORED, PhotometricInterpretation=None), RAMP, 2),
    "empty-interpretation": (make(STORED, PhotometricInterpretation=""), RAMP, 2),
    "grey-as-three-samples": (coloured("MONOCHROME2", np.dstack([RAMP] * 3)), RAMP, 1),
    "no-representation": (make(STORED, PixelRepresentation=None), RAMP, 2),
    "empty-representation": (make(STORED, PixelRepresentation=""), RAMP, 2),
    "no-samples": (make(STORED, SamplesPerPixel=None), RAMP, 2),
    "no-high-bit": (make(STORED, HighBit=None), RAMP, 2),
    "high-bit-beyond-the-word": (make(STORED, HighBit=40), RAMP, 2),
    "frames-as-text": (spelt("NumberOfFrames", b"one "), RAMP, 2),
    "no-planes": (make(np.dstack([RAMP] * 3), 8, PhotometricInterpretation="RGB"), RAMP, 1),
    "float": (floating("FloatPixelData", (RAMP / 255).astype(np.float32)), RAMP, 1),
    "double": (floating("DoubleFloatPixelData", RAMP * 1e-6), RAMP, 1),
    "float-window": (
        floating("FloatPixelData", STORED.astype(np.float32), VOILUTFunction="LINEAR_EXACT", **WINDOW),
        LINEAR,
        1,
    ),
    "float-nan": (floating("FloatPixelData", NAN), np.where(np.isnan(NAN), 0, RAMP), 1),
    "signed-padding-as-unsigned": (padded_below, np.where(np.arange(64) < 20, 0, RAMP), 1),
    "palette": (palette([256, 0, 16], (np.arange(255, -1, -1) * 257).astype("<u2")), 255 - RAMP, 1),
    "palette-of-8-bits-in-words": (palette([256, 0, 16], np.arange(255, -1, -1).astype("<u2")), 255 - RAMP, 1),
    "palette-of-8-bits-packed": (palette([256, 0, 8], np.arange(255, -1, -1).astype("u1")), 255 - RAMP, 1),
    "palette-of-4096-bytes": (palette([4096, 0, 8], np.rint(BYTES).astype("u1"), STORED, 12), 255 - RAMP, 1),
    "padding-after-the-pixels": (lambda: written(padded(40)), RAMP, 2),
    "ybr-422-with-all-samples": (coloured("YBR_FULL_422", YBR), RAMP, 1),
    "fragments": (
        frames_of(JPEG2000Lossless, jpeg_2000(RAMP), has_bot=False, fragments_per_frame=3),
        RAMP,
        0,
    ),
    "offset-table-of-fragments": (offsets_of_fragments, RAMP, 0),
    "rgb": (coloured("RGB", np.dstack([RAMP] * 3)), RAMP, 1),
    "rgb-planes": (coloured("RGB", np.stack([RAMP] * 3), 1, Rows=48, Columns=64), RAMP, 1),
    "ybr-full": (coloured("YBR_FULL", YBR), RAMP, 1),
    "ybr-full-422": (
        coloured("YBR_FULL_422", YBR, Rows=48, Columns=64, PixelData=YBR_422.tobytes()),
        np.repeat(RAMP[:, ::2], 2, axis=1),
        3,
    ),
    "icc-profile-is-passed-over": (coloured("RGB", np.dstack([RAMP] * 3), ICCProfile=b"no profile at all"), RAMP, 1),
    "implicit": (make(STORED, syntax=ImplicitVRLittleEndian), RAMP, 2),
    "deflated": (make(STORED, syntax=DeflatedExplicitVRLittleEndian), RAMP, 2),
    "rle": (lambda: compressed(RLELossless, dicom(STORED)), RAMP, 2),
    "rle-garbage": (lambda: compressed(RLELossless, dicom(GARBAGE)), RAMP, 2),
    "jpeg-ls": (lambda: compressed(JPEGLSLossless, dicom(STORED)), RAMP, 2),
    "jpeg-ls-signed": (lambda: compressed(JPEGLSLossless, dicom(SIGNED)), RAMP, 2),
    "jpeg-ls-near": (lambda: compressed(JPEGLSNearLossless, dicom(STORED), jls_error=3), RAMP, 2),
    "jpeg-2000": (lambda: compressed(JPEG2000Lossless, dicom(STORED)), RAMP, 2),
    "jpeg-2000-signed": (lambda: compressed(JPEG2000Lossless, dicom(SIGNED)), RAMP, 2),
    "jpeg-baseline": (frame_of(JPEGBaseline8Bit, jpeg()), RAMP, 3),
    "no-preamble": (lambda: make(STORED)()[132:], RAMP, 2),
    "no-preamble-no-meta": (lambda: data_set_only(), RAMP, 2),
    "dicom-after-a-tiff-header": (lambda: b"II*\0" + make(STORED)()[4:], RAMP, 2),
    "one-pixel": (make(STORED[:1, :1]), RAMP[:1, :1] * 0, 0),
    "window-of-text": (make(STORED, WindowCenter="1e99", WindowWidth="1"), RAMP, 2),
}


def data_set_only() -> bytes:
    data = written(dicom(STORED, syntax=ImplicitVRLittleEndian))
    return data[data.index(b"\x08\0\x16\0") :]


def assert_nothing_told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture, *texts: str) -> None:
    printed = capfd.readouterr()
    for told in (*texts, caplog.text, printed.out, printed.err):
        assert "doe" not in told.lower()
        assert "gonarthrosis" not in told.lower()
    assert printed.err == ""


@pytest.fixture(autouse=True)
def _loud(caplog):
    caplog.set_level(logging.DEBUG)
    warnings.simplefilter("error")


@pytest.mark.parametrize("name", READ)
def test_odd_dicom_is_read_right(name, caplog, capfd):
    build, expected, tolerance = READ[name]
    decoded = decode(build(), Path(f"{name}.img"))
    assert_nothing_told(caplog, capfd, decoded.kind)
    if expected is None:  # padding is white, the rest stretched by itself
        expected, tolerance = np.where(PADDED == 65535, 255, RAMP), 12
    assert decoded.grey.shape == expected.shape
    assert np.abs(decoded.grey.astype(int) - expected).max() <= tolerance


REWRITTEN = {
    "big-endian": (GDCM.ExplicitVRBigEndian, STORED, 12, 2),
    "baseline": (GDCM.JPEGBaselineProcess1, RAMP, 8, 3),
    "extended-8-bit": (GDCM.JPEGExtendedProcess2_4, RAMP, 8, 3),
    "extended-12-bit": (GDCM.JPEGExtendedProcess2_4, STORED, 12, 3),
    "lossless": (GDCM.JPEGLosslessProcess14, STORED, 12, 2),
    "lossless-first-order": (GDCM.JPEGLosslessProcess14_1, STORED, 12, 2),
    "lossless-16-bit": (GDCM.JPEGLosslessProcess14_1, STORED * 16, 16, 2),
    "lossless-signed": (GDCM.JPEGLosslessProcess14_1, SIGNED, 12, 2),
    "jpeg-2000-lossy": (GDCM.JPEG2000, STORED, 12, 3),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_dicom_in_another_transfer_syntax_is_read_right(name, tmp_path, caplog, capfd):
    syntax, stored, bits, tolerance = REWRITTEN[name]
    data = by_gdcm(syntax, tmp_path, dicom(stored, bits))
    decoded = decode(data, Path("a.dcm"))
    assert np.abs(decoded.grey.astype(int) - RAMP).max() <= tolerance
    assert_nothing_told(caplog, capfd)


DOUBTED = {
    "empty-rescale": (),
    "voi-table-of-12-bits-that-says-16": (),
    "voi-table-too-short": ("VOILUTSequence",),
    "second-voi-table": (),
    "presentation-shape-unknown": ("PresentationLUTShape",),
    "intercept-with-a-comma": ("RescaleIntercept", "WindowCenter", "WindowWidth"),
    "centre-with-a-comma": ("WindowCenter", "WindowWidth"),
    "negative-width": ("WindowCenter", "WindowWidth"),
    "window-of-text": ("WindowCenter", "WindowWidth"),
    "no-representation": ("PixelRepresentation",),
    "no-interpretation": ("PhotometricInterpretation",),
    "lower-case-interpretation": (),
    "unknown-function-is-linear": ("VOILUTFunction",),
    "frames-as-text": ("NumberOfFrames",),
    "window": (),
}


@pytest.mark.parametrize("name", DOUBTED)
def test_elements_that_are_passed_over_are_told(name):
    assert decode(READ[name][0](), Path("a.dcm")).doubtful == DOUBTED[name]


def cut(data: bytes, before_end: int) -> bytes:
    return data[:-before_end]


def deflate_bomb() -> bytes:
    data = make(STORED, syntax=DeflatedExplicitVRLittleEndian)()
    start = 132 + data[132:].index(DeflatedExplicitVRLittleEndian.encode()) + 22
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return data[:start] + b"".join(squeeze.compress(bytes(2**24)) for _ in range(40)) + squeeze.flush()


def open_sequence() -> bytes:
    """A sequence of undefined length that never ends, before the pixels."""
    data = make(STORED)()
    at = data.index(b"\x08\0\x16\0UI")
    return data[:at] + b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 3 + data[at:400]


def two_rle_frames() -> bytes:
    one = dicom(STORED)
    one.compress(RLELossless, generate_instance_uid=False)
    frame = get_frame(one.PixelData, 0, number_of_frames=1)
    one.PixelData = encapsulate([frame, frame], has_bot=False)
    return written(one)


def claiming(**elements) -> Callable[[], bytes]:
    return make(STORED, **elements)


SYNTAXES = {
    "mpeg2": ("1.2.840.10008.1.2.4.100", r"MPEG2 .*\(1\.2\.840\.10008\.1\.2\.4\.100\)"),
    "jpip": ("1.2.840.10008.1.2.4.94", r"JPIP"),
    "private": ("1.3.46.670589.33.1.4.1", r"transfer syntax 1\.3\.46\.670589\.33\.1\.4\.1, which is not supported"),
    "name-as-uid": (NAME, "of no valid UID"),
}
SMALL_FRAME = b"\xff\x4f\xff\x51" + bytes(40)

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    **{name: (frame_of(uid, bytes(64)), f"{reason}.*convert it") for name, (uid, reason) in SYNTAXES.items()},
    "no-pixels": (claiming(PixelData=None), "without .complete. pixel data"),
    "structured-report": (
        claiming(PixelData=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22"),
        "it is: Enhanced SR Storage",
    ),
    "directory": (
        claiming(PixelData=None, SOPClassUID="1.2.840.10008.1.3.10"),
        "it is: Media Storage Directory Storage",
    ),
    "frames": (claiming(NumberOfFrames=4), "4 frames; a radiograph has one"),
    "name-as-interpretation": (claiming(PhotometricInterpretation="DOE^JANE"), "cannot be decoded"),
    "no-rows": (claiming(Rows=0), "0 pixels; 1 to"),
    "rows-missing": (claiming(Rows=None), "cannot be decoded"),
    "60000x60000": (claiming(Rows=60000, Columns=60000), "60000 x 60000 pixels"),
    "7-bits-allocated": (claiming(BitsAllocated=7), "cannot be decoded"),
    "64-bits-allocated": (claiming(BitsAllocated=64, BitsStored=64, HighBit=63), "cannot be decoded"),
    "99-bits-stored": (claiming(BitsStored=99), "cannot be decoded"),
    "no-bits-stored": (claiming(BitsStored=None), "cannot be decoded"),
    "7-samples": (claiming(SamplesPerPixel=7), "cannot be decoded"),
    "frames-as-a-decimal": (spelt("NumberOfFrames", b"3.0 "), "3 frames; a radiograph has one"),
    "frame-and-a-half": (lambda: written(padded(48 * 64)), r"1\.5 frames; a radiograph has one"),
    "two-frames-that-say-one": (lambda: written(padded(2 * 48 * 64)), "2 frames; a radiograph has one"),
    "one-row-too-many": (claiming(Rows=47), "frames; a radiograph has one"),
    "two-float-frames": (
        floating("FloatPixelData", np.zeros((2, 48, 64), np.float32)),
        "2 frames; a radiograph has one",
    ),
    "half-a-float-frame": (floating("FloatPixelData", np.zeros((24, 64), np.float32)), "cannot be decoded"),
    "two-jpeg-2000-frames": (
        frames_of(JPEG2000Lossless, *[jpeg_2000(RAMP)] * 2, has_bot=False),
        "2 frames; a radiograph has one",
    ),
    "two-jpeg-2000-frames-in-the-table": (
        frames_of(JPEG2000Lossless, *[jpeg_2000(RAMP)] * 2),
        "2 frames; a radiograph has one",
    ),
    "two-jpeg-2000-frames-in-one-fragment": (
        frames_of(JPEG2000Lossless, jpeg_2000(RAMP) + jpeg_2000(255 - RAMP)),
        "2 frames; a radiograph has one",
    ),
    "two-jpeg-frames": (
        frames_of(JPEGBaseline8Bit, jpeg(), jpeg(), has_bot=False, fragments_per_frame=2),
        "2 frames; a radiograph has one",
    ),
    "two-rle-frames": (two_rle_frames, "2 frames; a radiograph has one"),
    "no-colour-interpretation": (
        coloured("RGB", np.dstack([RAMP] * 3), PhotometricInterpretation=None),
        "without a usable PhotometricInterpretation element",
    ),
    "rgb-of-one-sample": (claiming(PhotometricInterpretation="RGB"), "usable PhotometricInterpretation element"),
    "bits-stored-beyond-allocated": (claiming(BitsStored=17), "without a usable BitsStored element"),
    "no-bits-allocated": (claiming(BitsAllocated=None), "without a usable BitsAllocated element"),
    "palette-without-tables": (
        claiming(PhotometricInterpretation="PALETTE COLOR"),
        "usable RedPaletteColorLookupTableData element",
    ),
    "fewer-pixels-than-promised": (claiming(Rows=50), "cannot be decoded"),
    "no-slope": (claiming(RescaleSlope="0", RescaleIntercept="0"), "cannot be decoded"),
    "empty-pixels": (claiming(PixelData=b""), "cannot be decoded|without"),
    "truncated-header": (lambda: make(STORED)()[:300], "DICOM"),
    "truncated-pixels": (lambda: cut(make(STORED)(), 100), "DICOM"),
    "only-a-preamble": (lambda: bytes(128) + b"DICM", "DICOM without"),
    "open-sequence": (open_sequence, "DICOM"),
    "noise-after-the-preamble": (lambda: bytes(128) + b"DICM" + np.random.default_rng(0).bytes(4000), "DICOM"),
    "deflate-bomb": (deflate_bomb, "inflates to more than"),
    "deflate-noise": (
        lambda: make(STORED, syntax=DeflatedExplicitVRLittleEndian)()[:400] + bytes(range(200)),
        "DICOM",
    ),
    "noise-as-jpeg": (
        frame_of(JPEGBaseline8Bit, np.random.default_rng(0).bytes(900)),
        "differ in size|cannot be decoded",
    ),
    "truncated-jpeg": (frame_of(JPEGBaseline8Bit, jpeg()[:-600]), "cannot be decoded"),
    "jpeg-of-another-size": (frame_of(JPEGBaseline8Bit, jpeg(RAMP[:16])), "differ in size"),
    "jpeg-2000-of-another-size": (frame_of(JPEG2000Lossless, jpeg_2000(RAMP[:16])), "differ in size"),
    "jpeg-2000-bomb": (
        frame_of(JPEG2000Lossless, jpeg_2000(RAMP).replace(b"\0\0\0\x30", b"\x7f\0\0\x30", 1)),
        "differ in size",
    ),
    "truncated-jpeg-2000": (frame_of(JPEG2000Lossless, jpeg_2000(RAMP)[:-300]), "cannot be decoded"),
    "noise-as-jpeg-2000": (
        frame_of(JPEG2000Lossless, np.random.default_rng(0).bytes(900)),
        "differ in size|cannot be decoded",
    ),
    "noise-as-jpeg-ls": (
        frame_of(JPEGLSLossless, np.random.default_rng(0).bytes(900)),
        "differ in size|cannot be decoded",
    ),
    "noise-as-rle": (frame_of(RLELossless, np.random.default_rng(0).bytes(900)), "differ in size|cannot be decoded"),
    "noise-as-jpeg-lossless": (
        frame_of("1.2.840.10008.1.2.4.70", np.random.default_rng(0).bytes(900)),
        "differ in size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_dicom_is_refused_in_one_sentence_without_header_text(name, caplog, capfd):
    build, reason = REFUSED[name]
    path = Path(f"{name}.dcm")
    with pytest.raises(ImageError, match=reason) as caught:
        decode(build(), path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert caught.value.__cause__ is None
    assert_nothing_told(caplog, capfd, message)


def test_frame_that_makes_the_codec_abort_is_refused(tmp_path, caplog, capfd):
    """GDCM ends the process when a marker stands where it expects none."""
    data = by_gdcm(GDCM.JPEGLosslessProcess14_1, tmp_path, dicom(STORED * 16, 16))
    broken = data.replace(b"\xff\xc4", b"\x7f\xc4", 1)
    assert broken != data
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(broken, Path("a.dcm"))
    assert_nothing_told(caplog, capfd)
