"""Two predictions tables against each other: by hand, by a plain loop, and where they do not belong together."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from knee_siglip.cli.compare.comparison import compare as compare_runs
from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.evaluation.headline import headlines
from knee_siglip.evaluation.predictions import predictions_of
from toys import KNEE

RESAMPLES = 200


def compare(a, b, *arguments, **options):
    """One run a side."""
    return compare_runs([a], [b], *arguments, **options)


@pytest.fixture
def predict(make_split, data_of):
    """Predictions of a model whose images are blurred by `noise`, on rows that do not depend on it."""

    def predict(noise, seed=1, **changes):
        split = make_split(wordings=10)
        split.rows["image_id"] = [f"{row:064x}" for row in range(160)]
        noisy = split.text_embeds + noise * np.random.default_rng(seed).normal(size=split.text_embeds.shape)
        embeds = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
        split = replace(split, image_embeds=embeds, **changes)
        return predictions_of(split, data_of(split).params)

    return predict


@pytest.fixture
def good(predict):
    return predict(0.1)


@pytest.fixture
def poor(predict):
    return predict(0.4)


def by_metric(comparisons):
    return {row.metric: row for row in comparisons}


def test_a_better_model_is_found_better_by_every_metric(good, poor):
    rows = compare(poor, good)
    assert [row.metric for row in rows] == list(headlines(KNEE.labels))
    for row in rows:
        assert row.difference == row.value_b - row.value_a > 0
        assert 0 < row.low < row.difference < row.high
        assert row.p == pytest.approx(2 / 2001)
        assert row.p_holm == pytest.approx(7 * 2 / 2001)


def test_the_other_way_round_is_the_opposite(good, poor):
    there, back = (
        by_metric(compare(poor, good, resamples=RESAMPLES)),
        by_metric(compare(good, poor, resamples=RESAMPLES)),
    )
    for name, row in there.items():
        assert (back[name].difference, back[name].low, back[name].high) == pytest.approx(
            (-row.difference, -row.high, -row.low)
        )
        assert back[name].p == row.p


def test_a_model_does_not_differ_from_itself(good):
    for row in compare(
        good, good.sample(frac=1, random_state=0), resamples=RESAMPLES
    ):  # nor does the order of the rows matter
        assert (row.difference, row.low, row.high, row.p, row.p_holm) == (0, 0, 0, 1, 1)


def test_interval_and_p_equal_a_plain_loop(good, poor):
    rng = np.random.default_rng(0)
    names, actual = good["patient_id"].unique(), good["kl_grade"].to_numpy(dtype=int)
    rows_of = {name: np.flatnonzero(good["patient_id"] == name) for name in names}
    differences = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([rows_of[names[rng.integers(80)]] for _ in range(80)])
        kappas = [
            cohen_kappa_score(actual[rows], table["kl_grade_predicted"].to_numpy()[rows], weights="quadratic")
            for table in (good, poor)
        ]
        differences.append(kappas[1] - kappas[0])
    (row,) = compare(good, poor, ["zero_shot_kl.quadratic_weighted_kappa"], resamples=RESAMPLES)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    below = min(np.sum(np.array(differences) <= 0), np.sum(np.array(differences) >= 0))
    assert row.p == row.p_holm == pytest.approx(2 * (1 + below) / (1 + RESAMPLES))


def test_pairing_takes_out_what_is_hard_for_both(predict):
    a, b = predict(0.4), predict(0.4)
    b.loc[:9, "image_to_text_recall_at_1"] = 0.0
    unpaired = b.copy()
    unpaired["image_to_text_recall_at_1"] = np.roll(b["image_to_text_recall_at_1"], 37)
    name = "retrieval.image_to_text.recall_at_1"
    paired, apart = compare(a, b, [name])[0], compare(a, unpaired, [name])[0]
    assert paired.difference == pytest.approx(apart.difference)
    assert apart.high - apart.low > 1.5 * (paired.high - paired.low)


def test_p_is_adjusted_for_what_was_asked_for_only(good, poor):
    names = ["zero_shot_kl.accuracy", "contrastive_accuracy"]
    rows = compare(poor, good, names)
    assert [row.metric for row in rows] == names
    assert rows[0].p_holm == pytest.approx(2 * rows[0].p)
    assert rows[0] == replace(by_metric(compare(poor, good))[names[0]], p_holm=rows[0].p_holm)


def test_equal_rows_are_paired_one_by_one(good, poor):
    doubled = [pd.concat([table, table.iloc[:5]], ignore_index=True) for table in (good, poor)]
    assert compare(*doubled, resamples=RESAMPLES)
    with pytest.raises(UserError, match=r"1 only in A \(images/0.png\)\."):
        compare(doubled[0], doubled[1].iloc[1:])


def test_different_rows_are_counted_and_named(good, poor):
    poor.loc[3, "text"] = "another text"
    with pytest.raises(UserError) as error:
        compare(good, poor.iloc[:-5])
    assert "A has 160 rows, B has 155" in str(error.value)
    assert "6 only in A (images/3.png, images/155.png, images/156.png ...); 1 only in B (images/3.png)" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("column", "value"), [("kl_grade", 4), ("kl_grade", None), ("patient_id", "x"), ("study_id", "x")]
)
def test_rows_that_say_something_else_are_refused(good, poor, column, value):
    for table in (good, poor):
        table["study_id"] = table["img_path"]
    poor.loc[7, column] = value
    good.loc[7, "kl_grade"] = 2 if column == "kl_grade" else good.loc[7, "kl_grade"]
    with pytest.raises(UserError, match=rf"{column} differs between A and B in 1 of 160 rows \(images/7.png\)"):
        compare(good, poor)


def test_a_missing_column_is_a_difference(good, poor):
    with pytest.raises(UserError, match="patient_id differs between A and B in 160 of 160 rows"):
        compare(good, poor.drop(columns="patient_id"))


def test_other_batches_matter_to_the_contrastive_accuracy_only(good, predict):
    other = predict(0.4, batch_size=32)
    with pytest.raises(UserError, match=r"the same evaluate.batch_size: contrastive_batch differs"):
        compare(good, other)
    assert len(compare(good, other, ["zero_shot_kl.accuracy", "zero_shot_kl.macro_auroc"])) == 2


def test_unknown_metrics_are_refused(good, poor):
    with pytest.raises(UsageError, match="loss is no headline metric; there are contrastive_accuracy, "):
        compare(good, poor, ["loss"])


@pytest.mark.filterwarnings("error")
def test_undefined_metrics_are_left_out_unless_they_are_named(good, poor):
    alike = [table.assign(kl_grade=pd.array([2] * 160, dtype="Int64")) for table in (good, poor)]
    assert "zero_shot_kl.macro_auroc" not in by_metric(compare(*alike, resamples=RESAMPLES))
    with pytest.raises(UserError, match=r"zero_shot_kl\.macro_auroc is undefined for these 160 rows"):
        compare(*alike, ["zero_shot_kl.macro_auroc"])
    ungraded = [table.drop(columns="kl_grade") for table in (good, poor)]
    assert len(compare(*ungraded)) == 3
    assert compare(good.iloc[:0], poor.iloc[:0]) == []


def test_runs_of_a_side_are_averaged_and_their_spread_widens_the_interval(predict):
    a, b = [[predict(noise, seed) for seed in (1, 2, 3)] for noise in (0.3, 0.25)]
    names = ["zero_shot_kl.accuracy", "contrastive_accuracy"]
    single = by_metric(compare(a[0], b[0], names))
    for row in compare_runs(a, b, names):
        alone = [compare(run_a, run_b, [row.metric])[0] for run_a, run_b in zip(a, b, strict=True)]
        values = [each.value_b for each in alone]
        assert row.value_b == pytest.approx(np.mean(values))
        assert row.spread_b == pytest.approx(np.std(values, ddof=1))
        assert row.difference == pytest.approx(np.mean([each.difference for each in alone]))
        assert row.low < row.difference < row.high
        assert (row.p < 0.05) == (row.low > 0 or row.high < 0)
        assert single[row.metric].spread_a is None


def test_the_order_of_runs_and_rows_does_not_matter(predict):
    runs, other = [predict(0.3, seed) for seed in (1, 2, 3)], [predict(0.3, seed) for seed in (4, 5)]
    shuffled = [run.sample(frac=1, random_state=0) for run in runs]
    assert compare_runs(shuffled, other, resamples=RESAMPLES) == compare_runs(runs, other, resamples=RESAMPLES)
    back = by_metric(compare_runs(other, runs, resamples=RESAMPLES))
    for row in compare_runs(runs, other, resamples=RESAMPLES):
        assert back[row.metric].difference == -row.difference
        assert back[row.metric].p == pytest.approx(row.p, rel=0.2)  # runs are drawn in another order


def test_one_training_under_two_names_is_no_two_runs(good, poor):
    with pytest.raises(UserError, match="A1 and A2 are the same model: all of their predictions are equal"):
        compare_runs([poor, poor.sample(frac=1, random_state=0)], [good])
    assert compare_runs([poor], [poor.copy()], resamples=RESAMPLES)  # A and B may well be the same


def test_a_run_on_other_rows_is_named(good, poor):
    with pytest.raises(UserError, match=r"A has 160 rows, B2 has 155.* 5 only in A "):
        compare_runs([good], [poor, poor.iloc[:-5]])
