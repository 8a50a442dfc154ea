"""The tables of the evaluation: every headline number comes out of the file again, without this project's code."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from knee_siglip.evaluation.embedded import PromptEmbeds
from knee_siglip.evaluation.headline import headline_estimates, headline_from_predictions, headlines
from knee_siglip.evaluation.predictions import embeddings_table, predictions_of, write_predictions
from knee_siglip.task.task import Finding
from toys import KNEE

SEVERE = {"severe": Finding(positive=["severe"], negative=["normal"], text="grade [34]")}


@pytest.fixture
def split(make_split):
    """150 pairs, of which 22 fall out of the batches and 15 have no grade; with a column that nobody asked for."""
    split = make_split(count=150, noise=0.6, wordings=10, findings=SEVERE)
    split.rows["image_id"] = [f"{row:064x}" for row in range(150)]
    split.rows["side"] = ["left", "right"] * 75
    split.rows["scanner"] = "A"
    split.rows["kl_grade"] = split.rows["kl_grade"].where(np.arange(150) % 10 > 0)
    axes = np.concatenate(split.prompts.grades)
    return replace(split, prompts=PromptEmbeds(split.prompts.grades, {"severe": np.stack([axes[4], axes[0]])}))


@pytest.fixture
def stored(split, data_of, tmp_path):
    """The predictions of the split, read back from the file."""
    write_predictions(predictions_of(split, data_of(split).params), tmp_path / "new" / "predictions.parquet")
    return pd.read_parquet(tmp_path / "new" / "predictions.parquet")


def recomputed(table):
    """All headline metrics by scikit-learn and pandas alone."""
    graded = table.dropna(subset=["kl_grade"])
    actual, predicted = graded["kl_grade"].astype(int), graded["kl_grade_predicted"]
    directions = table[["contrastive_image_to_text", "contrastive_text_to_image"]].dropna()
    areas = [roc_auc_score(actual == grade, graded[f"kl_probability_{grade}"]) for grade in sorted(actual.unique())]
    return {
        "contrastive_accuracy": directions.stack().mean(),
        "retrieval.image_to_text.recall_at_1": table["image_to_text_recall_at_1"].mean(),
        "retrieval.text_to_image.recall_at_1": table["text_to_image_recall_at_1"].mean(),
        "zero_shot_kl.accuracy": accuracy_score(actual, predicted),
        "zero_shot_kl.balanced_accuracy": balanced_accuracy_score(actual, predicted),
        "zero_shot_kl.quadratic_weighted_kappa": cohen_kappa_score(actual, predicted, weights="quadratic"),
        "zero_shot_kl.macro_auroc": np.mean(areas),
    }


def test_the_file_gives_every_headline_number_again(split, measured, stored):
    metrics = measured(split)
    expected = {name: metrics[name] for name in headlines(KNEE.labels)}
    assert recomputed(stored) == pytest.approx(expected)
    assert headline_from_predictions(stored) == pytest.approx(expected)
    assert 0.2 < expected["zero_shot_kl.accuracy"] < 0.95  # neither is trivial


def test_the_file_gives_the_other_retrieval_figures_again(split, measured, stored):
    metrics = measured(split)
    means = {"recall_at_5": "recall_at_5", "recall_at_10": "recall_at_10", "mrr": "reciprocal_rank"}
    means |= {"map": "average_precision"}
    for family, prefix in (("retrieval", ""), ("retrieval_strict", "strict_")):
        for search in ("image_to_text", "text_to_image"):
            for name, column in means.items():
                found = stored[f"{prefix}{search}_{column}"].mean()
                assert found == pytest.approx(metrics[f"{family}.{search}.{name}"])
            assert stored[f"{prefix}{search}_rank"].median() == metrics[f"{family}.{search}.median_rank"]


def test_the_embeddings_give_grades_and_recall_again(split, data_of, stored, tmp_path):
    write_predictions(embeddings_table(data_of(split)), tmp_path / "embeddings.parquet")
    schema = pq.read_schema(tmp_path / "embeddings.parquet")
    assert [str(schema.field(name).type) for name in ("image_embed", "text_embed")] == ["list<element: float>"] * 2
    table = pd.read_parquet(tmp_path / "embeddings.parquet")
    assert table[["image_id", "split"]].equals(stored[["image_id", "split"]])
    images, texts = np.stack(table["image_embed"]), np.stack(table["text_embed"])
    np.testing.assert_array_equal(images, split.image_embeds)
    nearest = cdist(images, texts, "cosine").argmin(axis=1)
    right = stored["text_id"].to_numpy()[nearest] == stored["text_id"]
    assert right.mean() == pytest.approx(stored["image_to_text_recall_at_1"].mean())


def test_scores_and_probabilities_belong_together(split, stored):
    scores = stored[[f"kl_score_{grade}" for grade in range(5)]].to_numpy()
    probabilities = stored[[f"kl_probability_{grade}" for grade in range(5)]].to_numpy()
    np.testing.assert_allclose(softmax(split.logit_scale * scores, axis=1), probabilities)
    assert (scores.argmax(axis=1) == stored["kl_grade_predicted"]).all()


def test_rows_outside_of_batches_and_rows_without_a_grade_are_empty(stored):
    assert stored["contrastive_batch"].value_counts().to_dict() == {0: 64, 1: 64}
    left_over = stored["contrastive_batch"].isna()
    for name in ("contrastive_image_to_text", "contrastive_text_to_image"):
        assert (stored[name].isna() == left_over).all()
    assert stored["kl_grade"].dtype == "Int64"
    assert stored["kl_grade"].isna().sum() == 15


def test_what_is_known_of_an_image_is_carried(split, data_of, stored):
    assert stored["img_path"].tolist() == split.rows["img_path"].tolist()
    assert {"image_id", "split", "patient_id", "side", "text"} <= set(stored)
    assert "view" not in stored  # the CSV had none
    assert "scanner" not in stored
    assert "scanner" in predictions_of(split, data_of(split, subgroups=["scanner", "missing"]).params)


def test_findings_have_a_score_and_where_it_is_known_a_truth(split, data_of, stored):
    strongest = (
        split.image_embeds @ (split.prompts.findings["severe"][0] - split.prompts.findings["severe"][1])
    ).argmax()
    assert stored["finding_severe_score"].idxmax() == strongest
    assert (stored["finding_severe_truth"] == stored["text"].str.contains("grade [34]")).all()


def test_embeddings_of_several_splits_lie_below_each_other(split, make_split, data_of):
    val = make_split(count=20, seed=1, name="val", wordings=10)
    val.rows["split"] = "val"
    val = replace(val, prompts=split.prompts)
    val.rows["image_id"] = [f"val {row}" for row in range(20)]
    data = replace(data_of(split, val), params=data_of(split).params.model_copy(update={"splits": ["val", "test"]}))
    table = embeddings_table(data)
    assert table["split"].tolist() == ["val"] * 20 + ["test"] * 150
    assert table["image_id"].tolist() == [*val.rows["image_id"], *split.rows["image_id"]]


def test_equal_predictions_give_equal_bytes(split, data_of, tmp_path):
    for name in ("a", "b"):
        write_predictions(predictions_of(split, data_of(split).params), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_headline_lies_in_its_interval(stored):
    figures = headline_estimates(stored, resamples=200)
    assert list(figures) == list(headlines(KNEE.labels))
    for name, figure in figures.items():
        assert figure.interval.low < figure.value < figure.interval.high, name


def test_patients_are_drawn_with_both_knees(stored):
    stored["contrastive_image_to_text"] = stored["contrastive_text_to_image"] = (np.arange(150) // 2 % 2).astype(float)
    both, alone = (
        headline_estimates(table, resamples=500)["contrastive_accuracy"].interval
        for table in (stored, stored.drop(columns="patient_id"))
    )
    assert both.high - both.low > 1.25 * (alone.high - alone.low)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chosen", ["none", "one", "ungraded", "one grade"])
def test_subgroups_leave_out_what_they_do_not_define(stored, chosen):
    rows = {
        "none": slice(0),
        "one": slice(1, 2),
        "ungraded": stored["kl_grade"].isna(),
        "one grade": stored["kl_grade"] == 2,
    }
    figures = headline_estimates(stored[rows[chosen]], resamples=50)
    assert all(np.isfinite(figure.value) for figure in figures.values())
    assert bool(figures) == (chosen != "none")
    assert ("zero_shot_kl.accuracy" in figures) == (chosen in ("one", "one grade"))
    assert "zero_shot_kl.macro_auroc" not in figures


def test_without_grades_and_patients_the_rest_is_there(make_split, data_of):
    split = make_split(graded=False)
    del split.rows["patient_id"]
    table = predictions_of(split, data_of(split).params)
    assert "kl_grade" not in table
    assert [name for name in headlines(KNEE.labels) if not name.startswith("zero_shot")] == list(
        headline_estimates(table, resamples=9)
    )
