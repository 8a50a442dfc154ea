"""docs/hostile-params.md says what the code answers, and nothing hostile passes without a reason."""

from params.hostile_values import HOSTILE, PAGE, page


def test_the_page_says_what_the_code_answers():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.params.hostile_values"


def test_a_hundred_values_are_tried_and_none_passes_without_a_reason():
    text = PAGE.read_text(encoding="utf-8")
    assert len({str(entry[:2]) for entry in HOSTILE}) >= 100
    assert "*accepted* |" not in text
    assert text.count("\n| `") == len(HOSTILE)
