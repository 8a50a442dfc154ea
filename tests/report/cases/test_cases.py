"""What the browser is told of each case."""

import numpy as np
import pandas as pd
import pytest

from knee_siglip.params.tasks import saved_task
from knee_siglip.report.cases import cases as module
from knee_siglip.report.cases.cases import list_cases
from report.cases.conftest import make_embeddings, make_predictions

TASK = saved_task({})


def listed(predictions: pd.DataFrame) -> module.CaseList:
    return list_cases(predictions, make_embeddings(predictions), TASK)


def test_a_case_tells_grades_texts_and_findings() -> None:
    case = listed(make_predictions()).cases[10]
    assert (case["actual"], case["predicted"], case["error"], case["confidence"]) == ("2", "4", 2, 0.6)
    assert case["probabilities"] == [0.1, 0.1, 0.1, 0.1, 0.6]
    assert case["findings"] == [{"name": "effusion", "score": 0.1, "truth": True}]
    assert case["categories"] == {"side": "right"}
    assert len(case["found"]) == 5
    assert case["found"][0] == {"text": "text 5 </script>", "similarity": 1.0, "right": True, "count": 2}


def test_texts_of_the_same_study_are_right() -> None:
    found = listed(make_predictions()).cases[10]["found"]
    assert {text["text"] for text in found if text["right"]} <= {"text 4 </script>", "text 5 </script>"}
    rights = listed(make_predictions().drop(columns="study_id")).cases[10]["found"]
    assert [text["text"] for text in rights if text["right"]] == ["text 5 </script>"]


def test_a_case_without_a_grade_of_the_reader_is_no_mistake() -> None:
    predictions = make_predictions()
    predictions.loc[10, "kl_grade"] = pd.NA
    case = listed(predictions).cases[10]
    assert (case["actual"], case["error"], case["predicted"]) == (None, None, "4")


def test_without_grades_there_is_none() -> None:
    names = ["kl_grade", "kl_grade_predicted", *TASK.labels.probabilities]
    case = listed(make_predictions().drop(columns=names)).cases[0]
    assert case.keys().isdisjoint({"actual", "predicted", "error", "probabilities"})


def test_above_the_limit_all_mistakes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CASES_SHOWN", 8)
    shown = listed(make_predictions())
    assert shown.total == 40
    assert len(shown.cases) == 8
    rows = [case["row"] for case in shown.cases]
    assert {0, 7, 10, 20, 30} <= set(rows)
    assert rows == sorted(rows)
    monkeypatch.setattr(module, "CASES_SHOWN", 1)
    assert [case["row"] for case in listed(make_predictions()).cases] == [10]


def test_rows_of_other_order_are_not_mixed() -> None:
    predictions = make_predictions()
    with pytest.raises(AssertionError):
        list_cases(predictions, make_embeddings(predictions)[::-1], TASK)


def test_columns_of_many_values_are_no_filters() -> None:
    predictions = make_predictions().assign(
        maker=[f"m{row % 3}" for row in range(40)], series=np.arange(40).astype(str)
    )
    assert listed(predictions).columns == ["side", "maker"]
