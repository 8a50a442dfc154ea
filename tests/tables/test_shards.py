import pytest

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.shards import Shard, asked_shard

NAMES = [f"{number}.png" for number in range(10)]


def test_shards_together_take_every_distinct_item_once():
    shares = [Shard(number, 3).take([*NAMES, *NAMES]) for number in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)


def test_the_option_is_read_in_both_spellings():
    assert asked_shard([]) is None
    assert asked_shard(["--shard", "2/4"]) == asked_shard(["--shard=2/4"]) == Shard(2, 4)


@pytest.mark.parametrize("wrong", [["--shard"], ["--shard", "0/4"], ["--shard", "5/4"], ["--shards", "1/4"], ["1/4"]])
def test_anything_else_is_refused_in_a_sentence(wrong):
    with pytest.raises(UsageError, match="--shard"):
        asked_shard(wrong)
