"""Which images the report shows: half successes, half failures, and the worst mistakes first."""

import numpy as np
import pandas as pd
import pytest

from knee_siglip.evaluation.examples import gallery, worst_mistakes

COUNT = 40
TEXTS = 10


@pytest.fixture
def split(make_split):
    """Ten texts, each of four images; the image finds its own text where its row is odd, else the next one."""
    meant = np.arange(COUNT) % TEXTS
    seen = np.where(np.arange(COUNT) % 2 == 1, meant, (meant + 1) % TEXTS)
    texts = np.eye(TEXTS, dtype=np.float32)
    rows = pd.DataFrame(
        {
            "img_path": [f"images/{row}.png" for row in range(COUNT)],
            "text": [f"text number {number}" for number in meant],
        }
    )
    images = 0.9 * texts[seen] + 0.1 * texts[meant]
    return make_split(rows=rows, image_embeds=images, text_embeds=texts[meant], numbers=np.arange(COUNT))


def test_the_gallery_is_half_right_and_half_wrong(split):
    found = gallery(split, 6)
    assert sorted(example["found"][0]["right"] for example in found) == [False] * 3 + [True] * 3
    for example in found:
        assert example["img_path"] == f"images/{example['row']}.png"
        assert example["text"] == f"text number {example['row'] % TEXTS}"
        texts = example["found"]
        assert [text["right"] for text in texts].count(True) == 1
        assert sorted((text["similarity"] for text in texts), reverse=True) == [text["similarity"] for text in texts]
        assert {text["count"] for text in texts} == {4}
        assert len({text["text"] for text in texts}) == 5


def test_the_gallery_is_always_the_same(split):
    assert gallery(split, 6) == gallery(split, 6)
    assert gallery(split, 0) == []


def test_a_gallery_larger_than_the_split_shows_each_image_once(split):
    assert len({example["row"] for example in gallery(split, 100)}) == COUNT


def test_a_text_of_the_same_study_is_right(make_split):
    embeds = np.eye(2, dtype=np.float32)
    rows = pd.DataFrame({"img_path": ["a.png", "b.png"], "text": ["a", "b"], "study_id": ["one", "one"]})
    pair = {"image_embeds": embeds, "text_embeds": embeds, "numbers": np.arange(2)}
    same = gallery(make_split(rows=rows, **pair), 2)
    assert all(text["right"] for example in same for text in example["found"])
    other = gallery(make_split(rows=rows.assign(study_id=None), **pair), 2)
    assert sorted(text["right"] for example in other for text in example["found"]) == [False, False, True, True]


def test_the_worst_mistakes_are_the_largest_then_the_surest(make_split):
    split = make_split(noise=2.0)
    mistakes = worst_mistakes(split)
    errors = [abs(mistake["actual"] - mistake["predicted"]) for mistake in mistakes]
    ranked = [(-error, -mistake["probability"]) for error, mistake in zip(errors, mistakes, strict=True)]
    assert ranked == sorted(ranked)
    assert errors[0] == np.abs(split.predicted - split.rows["kl_grade"].to_numpy(dtype=int)).max()
    assert len(mistakes) == 8


def test_a_perfect_model_makes_no_mistakes(make_split):
    assert worst_mistakes(make_split(noise=0.0)) == []


def test_a_mistake_is_of_its_own_row_where_others_have_no_grade(make_split):
    split = make_split(noise=2.0)
    split.rows.loc[:6, "kl_grade"] = pd.NA
    for mistake in worst_mistakes(split):
        assert mistake["row"] > 6
        assert mistake["actual"] == split.rows["kl_grade"][mistake["row"]]
        assert mistake["predicted"] == split.predicted[mistake["row"]]
