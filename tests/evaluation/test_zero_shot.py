"""Each prompt alone."""

import numpy as np
import pytest

from knee_siglip.evaluation.embedded import PromptEmbeds
from knee_siglip.evaluation.zero_shot import prompts_table
from knee_siglip.metrics.grading import zero_shot_metrics
from knee_siglip.metrics.matching.similarity import cosine_scores

PROMPTS = [*([f"grade {grade}"] for grade in range(4)), ["good", "bad"]]


@pytest.fixture
def with_a_bad_prompt(make_split):
    """The second prompt of grade 4 means grade 0 as well."""
    anchors = np.eye(5, 6, dtype=np.float32)
    grades = [anchors[grade : grade + 1] for grade in range(4)] + [np.stack([anchors[4], anchors[0]])]
    return make_split(noise=0.1, prompts=PromptEmbeds(grades, {}), label_prompts=PROMPTS)


def test_each_prompt_has_a_row_and_stands_alone_for_its_grade(with_a_bad_prompt):
    split = with_a_bad_prompt
    table = prompts_table(split)
    assert [(row["grade"], row["prompt"]) for row in table] == [
        *((grade, f"grade {grade}") for grade in range(4)),
        (4, "good"),
        (4, "bad"),
    ]
    for row, prompt in ((table[4], 0), (table[5], 1)):
        scores = split.grade_scores.copy()
        scores[:, 4] = cosine_scores(split.image_embeds, split.prompts.grades[4])[:, prompt]
        assert row["accuracy"] == pytest.approx(zero_shot_metrics(scores, split.grades)["accuracy"])


def test_a_misleading_prompt_shows(with_a_bad_prompt):
    *_, good, bad = prompts_table(with_a_bad_prompt)
    assert bad["accuracy_difference"] < -0.1
    assert bad["quadratic_weighted_kappa_difference"] < -0.1
    assert good["accuracy"] == 1


def test_the_only_prompt_of_a_grade_differs_in_nothing(with_a_bad_prompt):
    for row in prompts_table(with_a_bad_prompt)[:4]:
        assert row["accuracy_difference"] == row["quadratic_weighted_kappa_difference"] == 0


def test_what_is_undefined_is_left_out(make_split):
    ungraded, single = make_split(graded=False), make_split(noise=0)
    assert prompts_table(ungraded) == []
    single.rows["kl_grade"] = single.predicted[0]
    assert all({"accuracy", "accuracy_difference"} <= row.keys() for row in prompts_table(single))
