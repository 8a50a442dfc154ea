"""Public bug reports, by repository and number: what each of them is about is right here, or told."""

from pathlib import Path

import numpy as np
import pytest

from knee_siglip.imaging.decode.read import decode
from knee_siglip.tables.ids import id_key
from knee_siglip.tables.table import read_table
from torture.test_hostile_dicoms import READ

PIXELS = {
    "dicom-rs#825": (
        *("voi-table-of-12-bits-that-says-16", "voi-table-of-12-bits-that-says-8"),
        *("voi-table-of-8-bits-in-words", "voi-table-of-8-bits-packed"),
    ),
    "cornerstone3D#2856": (
        *("modality-table-of-12-bits", "modality-table-signed-16-bit", "modality-table-signed-first-as-unsigned"),
        *("voi-table-signed", "voi-table-signed-16-bit"),
    ),
    "highdicom#418": ("empty-rescale", "empty-window", "empty-first-window", "empty-first-centre"),
    "dcmjs#287": ("intercept-with-a-comma", "centre-with-a-comma", "centre-not-a-number", "width-not-a-number"),
    "pydicom#2135": (
        *("no-representation", "empty-representation", "no-interpretation", "empty-interpretation"),
        *("lower-case-interpretation", "float"),
    ),
    "monai-deploy-app-sdk#290": (
        *("presentation-shape-inverse", "presentation-shape-inverse-monochrome1", "presentation-shape-identity"),
    ),
}
"""Cases of test_hostile_dicoms.py."""


@pytest.mark.parametrize(("report", "case"), [(report, case) for report, cases in PIXELS.items() for case in cases])
def test_pixels_of_a_report_are_right(report, case):
    build, expected, tolerance = READ[case]
    grey = decode(build(), Path(f"{case}.dcm")).grey
    assert grey.shape == expected.shape
    assert np.abs(grey.astype(int) - expected).max() <= tolerance, report


@pytest.mark.parametrize("report", ["CLAM#228", "MEDS_transforms#25"])
def test_a_number_that_a_table_turned_into_a_float_is_the_same_patient(report):
    assert id_key("9000099.0") == id_key("9000099") == id_key("9.000099E+06"), report


def test_csvkit_382_a_long_cell_is_no_unclosed_quote(tmp_path):
    (tmp_path / "train.csv").write_text("a,b\n1," + "x" * 150_000 + "\n")
    assert read_table(tmp_path / "train.csv").loc[2, "b"] == "x" * 150_000
