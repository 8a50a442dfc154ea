import os

import pytest

from knee_siglip.core.errors import UsageError
from knee_siglip.tables.shards import Shard, asked_shard

NAMES = [f"{number}.png" for number in range(10)]


def test_shards_together_take_every_distinct_item_once():
    shares = [Shard(number, 3).take([*NAMES, *NAMES]) for number in (1, 2, 3)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)


def test_the_option_is_read_in_both_spellings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert asked_shard([]) is None
    assert asked_shard(["--shard", "2/4"]) == asked_shard(["--shard=2/4"]) == Shard(2, 4)


def test_a_shard_started_by_hand_uses_the_projects_store(monkeypatch, tmp_path):
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.delenv("DVC_ROOT")
    asked_shard(["--shard", "1/2"])
    assert os.environ["DVC_ROOT"] == str(tmp_path)


@pytest.mark.parametrize("wrong", [["--shard"], ["--shard", "0/4"], ["--shard", "5/4"], ["--shards", "1/4"], ["1/4"]])
def test_anything_else_is_refused_in_a_sentence(wrong):
    with pytest.raises(UsageError, match="--shard"):
        asked_shard(wrong)
