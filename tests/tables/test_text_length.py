import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.tables.text import fitting_text_length, position_count


@pytest.mark.parametrize(
    ("counts", "length"),
    [
        ([10, 30], 64),
        ([65] * 200, 72),
        ([30] * 995 + [300] * 5, 64),
        ([30] * 994 + [300] * 6, 304),
        ([5000] * 10, 512),
        ([], 64),
    ],
)
def test_auto_holds_all_but_half_a_percent_of_the_texts(counts, length):
    assert fitting_text_length(counts, positions=64) == length


def test_a_longer_table_is_used_whole():
    assert fitting_text_length([5000], positions=1024) == 1024


def test_a_folder_without_the_tables_length_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json does not give max_position_embeddings"):
        position_count(tmp_path)
