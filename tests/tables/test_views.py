"""Columns of images by view become rows."""

import pandas as pd
import pytest

from knee_siglip.tables.views import FIRST_NUMBER, expand_views


def table_of(**columns):
    table = pd.DataFrame(columns, dtype=str)
    return table.set_index(pd.RangeIndex(2, len(table) + 2, name="row"))


def test_each_image_of_a_row_is_a_row_of_its_study():
    table = table_of(
        img_path_ap=["1_ap.png", "2_ap.png", ""],
        impression=["first", "second", "third"],
        img_path_lateral=["1_lat.png", "", "3_lat.png"],
    )
    found = expand_views(table)
    assert found.table["img_path"].tolist() == ["1_ap.png", "1_lat.png", "2_ap.png", "3_lat.png"]
    assert found.table["view"].tolist() == ["ap", "lateral", "ap", "lateral"]
    assert found.table["impression"].tolist() == ["first", "first", "second", "third"]
    assert found.table["study_id"].tolist() == ["row 2", "row 2", "row 3", "row 4"]
    assert [found.name(row).row for row in found.table.index] == [2, 2, 3, 4]
    assert "img_path_ap" not in found.table


def test_a_known_study_stays_and_img_path_keeps_its_view():
    table = table_of(
        img_path=["a.png"], view=["pa"], img_path_skyline=["b.png"], study_id=["S7"], img_path_original=["x"]
    )
    found = expand_views(table).table
    assert found[["img_path", "view", "study_id"]].to_numpy().tolist() == [
        ["a.png", "pa", "S7"],
        ["b.png", "skyline", "S7"],
    ]
    assert found["img_path_original"].tolist() == ["x", "x"]


def test_both_knees_of_a_row_have_their_sides():
    found = expand_views(table_of(img_path_left=["l.png"], img_path_right=["r.png"], study_id=["unknown"])).table
    assert found["side"].tolist() == ["left", "right"]
    assert found["study_id"].tolist() == ["row 2", "row 2"]
    assert "view" not in found


def test_a_row_without_images_stays_to_be_told():
    found = expand_views(table_of(img_path_ap=["", "a.png"], img_path_pa=[" ", ""])).table
    assert found["img_path"].str.strip().tolist() == ["", "a.png"]
    assert found.index.tolist() == [2, 3]


@pytest.mark.parametrize("name", ["img_path_original", "img_path_old"])
def test_a_table_of_one_image_column_is_left_alone(name):
    table = table_of(img_path=["a.png"], **{name: ["x"]})
    assert expand_views(table).table is table


def test_a_sentence_names_the_csv_row_and_the_view():
    found = expand_views(table_of(img_path_ap=["a.png"] * 2, img_path_lateral=["b.png"] * 2))
    first, second, _, fourth = found.table.index
    assert found.in_words(f"rows {first}, {second} and {fourth}") == "rows 2, 2 (lateral) and 3 (lateral)"
    assert found.in_words(f"accession {FIRST_NUMBER + 77}") == f"accession {FIRST_NUMBER + 77}"
