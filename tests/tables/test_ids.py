import pandas as pd
import pytest

from knee_siglip.tables.ids import id_key, independent_units, is_rounded, known_ids

SPELLINGS = (
    *("9000099", "9000099.0", "9000099.00", "9000099,0", " 09000099 ", "0009000099", "9.000099E+06", "9.000099e+06"),
    *("9,000099E+06", "9.0000990E+6", "9,000,099", "9'000'099", "9.000.099", "9 000 099", "9\u00a0000\u00a0099"),
    *(
        "9\u202f000\u202f099",
        "'9000099",
        "’9000099",
        '"9000099"',
        '="9000099"',
        "\uff19\uff10\uff10\uff10\uff10\uff19\uff19",
    ),
    *("9000099\u200b", "\ufeff9000099", "90000\u00ad99", "\u200e9000099", "9000099\u2060", "9000099\t", "9000099\r"),
    *("٩٠٠٠٠٩٩", "9000099\u3000", "9,000,099.00", "9.000.099,0", "9'000'099.0"),
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_number_are_one_id(spelling: str) -> None:
    assert id_key(spelling) == "9000099"


@pytest.mark.parametrize("spelling", ["P-007", "p-007", "P–007", " P-7", "Ｐ-007", "P-0007", "P- 007"])
def test_spellings_of_a_name_are_one_id(spelling: str) -> None:
    assert id_key(spelling) == "p-7"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("A1", "1"),
            ("7", "70"),
            ("7.01", "7.1"),
            ("1-2", "12"),
            ("1.1", "1.10"),
            ("3e5", "300000"),
            ("12E4", "120000"),
        ),
        *(("a01b1", "a1b01"), ("1.2.840.10", "1.2.840.1"), ("9000099.5", "9000099"), ("-7", "7"), ("1.25E+01", "12")),
    ],
)
def test_different_ids_stay_different(one: str, other: str) -> None:
    assert id_key(one) != id_key(other)


@pytest.mark.parametrize(
    "text",
    ["", " ", "nan", "NaN", "NA", "N/A", "#N/A", "<NA>", "None", "NULL", "Unknown", "-", "--", "???", "xxx", "XX"],
)
@pytest.mark.parametrize("around", ["{}", " {} ", "\ufeff{}"])
def test_placeholders_are_no_ids(text: str, around: str) -> None:
    assert id_key(around.format(text)) == ""


@pytest.mark.parametrize("text", ["NA12878", "anonymous-17", "unknown3", "x1", "none-2"])
def test_ids_that_begin_as_placeholders_are_ids(text: str) -> None:
    assert id_key(text) != ""


@pytest.mark.parametrize(("text", "rounded"), [("9.00E+06", True), ("1.23457E+11", True), ("9.000099E+06", False)])
def test_a_number_that_lost_its_digits_names_nobody(text: str, rounded: bool) -> None:
    assert is_rounded(text) == rounded
    assert (id_key(text) == "") == rounded


def test_zero_is_an_id_where_the_column_counts_from_it() -> None:
    counted = pd.Series(["0", "0", "1", "2", "2"])
    assert known_ids(counted).tolist() == counted.tolist()
    assert known_ids(pd.Series(["0", "9000099", "9000296"])).tolist() == ["", "9000099", "9000296"]
    assert known_ids(pd.Series(["0"] * 9 + ["1", "1", "2"])).tolist() == [""] * 9 + ["1", "1", "2"]


def test_units_fall_back_to_the_study_then_to_the_image() -> None:
    table = pd.DataFrame(
        {
            "patient_id": ["1", "01.0", "nan", "", "", "", ""],
            "study_id": ["", "S1", "s1", "S2", "S2", "", "unknown"],
            "image_id": ["a", "b", "c", "d", "e", "f", "f"],
        }
    )
    units = independent_units(table)
    assert units.numbers.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert units.counts == {"patient": 1, "study": 1, "image": 1}
    assert str(units) == "1 patient and 1 study of an unknown patient and 1 image of an unknown patient"


def test_rows_without_any_id_are_units_of_their_own() -> None:
    units = independent_units(pd.DataFrame({"patient_id": ["a", "", "A", None, "b"]}))
    assert units.numbers.tolist() == [0, 1, 0, 2, 3]
    assert len(independent_units(pd.DataFrame({"text": ["x", "y"]}))) == 2
