"""The page says first whether the model is worth anything, shows what was measured, and stands alone."""

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from knee_siglip.core.nesting import nest
from knee_siglip.params.sections import Params
from knee_siglip.report.evaluation.gallery import gallery, worst_mistakes
from knee_siglip.report.evaluation.page import SECTIONS, write_page
from knee_siglip.report.evaluation.page_data import ModelFacts, PageData, SplitResults
from knee_siglip.report.evaluation.plot_rows import (
    RISK_POINTS,
    confusion_rows,
    learning_curve_rows,
    reliability_rows,
    risk_coverage_rows,
)
from knee_siglip.report.evaluation.verdict import verdict
from knee_siglip.report.evaluation.wording import HEADLINE
from pages import Page, assert_shows_well, assert_stands_alone, open_browser

COUNT = 40
HOSTILE = '<script>alert("x")</script>\'"><img src=x onerror=y>'
VALUES = dict(zip(HEADLINE, (0.9, 0.8, 0.7, 0.85, 0.84, 0.9, 0.95), strict=True))


def headline(values: dict[str, float], width: float = 0.05) -> dict[str, float]:
    """With an interval about each."""
    bounds = {f"{name}_ci_low": value - width for name, value in values.items()}
    return values | bounds | {f"{name}_ci_high": min(1, value + width) for name, value in values.items()}


def measured() -> dict[str, Any]:
    """Everything that metrics.json may hold for a split."""
    figures: dict[str, Any] = headline(VALUES) | {"rows": COUNT, "patients": 20, "contrastive_batch_size": 32}
    figures |= {"ceiling.contrastive_accuracy": 0.98, "calibration.ece": 0.021, "calibration.temperature": 1.5}
    figures |= {"zero_shot_kl.mae": 0.2, "zero_shot_kl.oa.sensitivity": 0.77, "zero_shot_kl.grade_3.recall": 0.66}
    figures |= {"zero_shot_findings.effusion.auroc": 0.91, "zero_shot_findings.effusion.n": COUNT}
    figures |= {"linear_probe.share_1.accuracy": 0.4, "linear_probe.share_1.accuracy_std": 0.1}
    figures |= {"linear_probe.share_100.accuracy": 0.8, "knn.accuracy": 0.75, "grounding.images": 6}
    for direction in ("image_to_text", "text_to_image"):
        figures |= {f"retrieval.{direction}.map": 0.5, f"retrieval_strict.{direction}.recall_at_1": 0.3}
    for baseline in ("constant", "text_prior", "pixel_neighbour", "untrained"):
        figures |= {f"baseline.{baseline}.{name}": 0.2 for name in HEADLINE}
    return nest(figures)


def tables() -> dict[str, list[dict[str, Any]]]:
    """Everything that tables/*.csv may hold for a split."""
    group = {"column": "side", "patients": 10, "metric": "zero_shot_kl.accuracy", "flagged": False, "suppressed": False}
    disturbed = {"metric": "contrastive_accuracy", "low": 0.7, "high": 0.9}
    return {
        "subgroups": [
            group | {"group": "left", "n": 31, "value": 0.9, "low": 0.8, "high": 1.0},
            group | {"group": "right", "n": 33, "value": 0.6, "low": 0.5, "high": 0.7, "flagged": True},
            group | {"column": "view", "group": "skyline", "n": 3, "value": None, "suppressed": True},
        ],
        "robustness": [
            disturbed | {"condition": "none", "level": "", "value": 0.9, "difference": 0.0},
            disturbed | {"condition": "shift", "level": "10 % of the side", "value": 0.5, "difference": -0.4},
            disturbed | {"condition": "inversion", "level": "black for white", "value": 0.1, "difference": -0.8},
        ],
        "prompts": [{"grade": 2, "prompt": "Mild OA.", "accuracy": 0.7, "quadratic_weighted_kappa": 0.6}],
        "probe": [{"method": "linear_probe", "share": 1, "labels": 12, "seed": 0, "accuracy": 0.4}],
        "grounding": [
            {"method": "occlusion", "cnr": 1.2, "pointing_game": 0.6, "miou": 0.1},
            {"method": "centre_prior", "cnr": 0.5, "pointing_game": 0.4, "miou": 0.1},
        ],
        "calibration": [
            {"probabilities": kind, "bin": number, "confidence": 0.5 + number / 5, "accuracy": 0.6, "n": 20}
            for kind in ("raw", "scaled")
            for number in (0, 1)
        ],
        "risk_coverage": [
            {"coverage": (row + 1) / COUNT, "risk": row / COUNT / 4, "threshold": 1 - row / 50, "n": row + 1}
            for row in range(COUNT)
        ],
    }


def predictions() -> pd.DataFrame:
    """Ten texts, each on four images; the model reads every fifth image one grade too high, row 7 four grades."""
    rows = np.arange(COUNT)
    grades = rows % 5
    predicted = np.where(rows % 5 == 3, grades + 1, grades)
    grades[7], predicted[7] = 0, 4
    table = pd.DataFrame(
        {
            "img_path": [f"images/{row}.png" for row in rows],
            "text": [f"text number {row % 10}" for row in rows],
            "text_id": rows % 10,
            "study_id": pd.array(["a", "a", *[None] * (COUNT - 2)], dtype="str"),
            "kl_grade": pd.array(grades, dtype="Int64"),
            "kl_grade_predicted": predicted,
            "image_to_text_recall_at_1": (rows % 2).astype(float),
        }
    )
    for grade in range(5):
        table[f"kl_probability_{grade}"] = np.where(predicted == grade, 0.5 + rows / 100, 0.1)
    return table


def overlay() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def images(rows: np.ndarray) -> np.ndarray:
    """Each image has its row number as its grey."""
    return np.tile(rows.astype(np.uint8)[:, None, None], (1, 32, 32))


@pytest.fixture
def split() -> SplitResults:
    """Everything measured; an image's own text comes first where the row is odd, the next one's where it is even."""
    text = np.eye(10)
    meant = np.arange(COUNT) % 10
    seen = np.where(np.arange(COUNT) % 2 == 1, meant, (meant + 1) % 10)
    image_embeds = 0.9 * text[seen] + 0.1 * text[meant]
    overlays = [("effusion, hiding parts", overlay())]
    return SplitResults("test", measured(), predictions(), image_embeds, text[meant], images, tables(), overlays)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """Three epochs as DVCLive writes them; of the last a line is half written."""
    for name in ("train", "val"):
        folder = tmp_path / "live" / "plots" / "metrics" / name
        folder.mkdir(parents=True)
        (folder / "loss.tsv").write_text("step\tloss\n25\t3.5\n50\t2.5\n75\tnan\n10")
    return tmp_path / "live"


@pytest.fixture
def data(split: SplitResults, live: Path) -> PageData:
    facts = ModelFacts(
        params=Params().to_dict(),
        revision="0123abc",
        data_hash="fedcba98",
        cache={"transform": {"contrast": "local"}},
        checkpoint={"saved_at": {"val.loss": 1.5}, "parameters": {"total": 1031266}},
        counts={"train_rows": 1590},
    )
    return PageData([split], facts, live, gallery=6)


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[[PageData], Page]:
    def write(data: PageData) -> Page:
        write_page(tmp_path / "page" / "index.html", data)
        return Page((tmp_path / "page" / "index.html").read_text(encoding="utf-8"))

    return write


def changed(split: SplitResults, **figures: float) -> SplitResults:
    """With other figures; dots of a metric's name are written `__`."""
    metrics = measured()
    for name, value in figures.items():
        *sections, key = name.split("__")
        place = metrics
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return dataclasses.replace(split, metrics=metrics)


def test_it_stands_alone_with_every_section_in_order(page_of, data: PageData) -> None:
    page = page_of(data)
    assert_stands_alone(page)
    assert [attributes["id"] for attributes in page.of("section")] == list(SECTIONS)
    assert [link["href"] for link in page.of("a")] == [f"#{anchor}" for anchor in SECTIONS]
    assert len(page.html) < 2_000_000


def test_a_browser_shows_and_prints_it(page_of, data: PageData, tmp_path: Path) -> None:
    browser = open_browser(tmp_path)
    page_of(data)
    assert_shows_well(browser, tmp_path / "page" / "index.html")


def test_the_same_results_give_the_same_bytes(page_of, data: PageData, tmp_path: Path) -> None:
    first = page_of(data).html
    assert page_of(dataclasses.replace(data)).html == first
    assert str(tmp_path) not in first


def test_a_good_model_is_told_what_it_can_do_beats_and_fails_at(split: SplitResults) -> None:
    said = verdict(split)
    assert said.tone == "warning"
    assert said.headline == (
        "The model finds the right text for 80 of 100 unseen images (95 % interval: 75 to 85) and names the "
        "Kellgren-Lawrence grade of 85 of 100 (95 % interval: 80 to 90)."
    )
    assert said.advice.startswith("It does better than chance and 3 other baselines on every headline figure")
    assert "Weakest spot: side: right (33 images)" in said.advice
    assert "60.0 % instead of 85.0 %" in said.advice
    assert "“Shift, 10 % of the side” the figure “right partner found in a small group” falls to 50.0 %" in said.advice


def test_a_model_without_a_weak_spot_is_good(split: SplitResults) -> None:
    said = verdict(dataclasses.replace(split, tables={}))
    assert (said.tone, said.advice.split(". ")[-1]) == ("good", "No weak spot stood out among calibration.")
    unknown = dataclasses.replace(changed(split), tables={})
    del unknown.metrics["calibration"]
    assert verdict(unknown).advice.endswith("Weak spots were not looked for.")


def test_a_model_trained_on_shuffled_texts_is_said_to_be_no_better_than_chance(page_of, data: PageData) -> None:
    null = dict(zip(HEADLINE, (0.21, 0.2, 0.19, 0.2, 0.2, 0.01, 0.51), strict=True))
    metrics = nest(headline(null) | {f"baseline.constant.{name}": 0.2 for name in list(HEADLINE)[:5]})
    page = page_of(dataclasses.replace(data, splits=[dataclasses.replace(data.shown, metrics=metrics)]))
    assert page.of("div", "verdict") == [{"class": "verdict error"}]
    assert page.text.index("This model is not better than chance.") < 150
    assert "finds the right text for 20 of 100" in page.text


def test_chance_by_definition_need_not_be_measured(split: SplitResults) -> None:
    metrics = nest(headline(dict(zip(list(HEADLINE)[5:], (0.02, 0.52), strict=True))))
    assert verdict(dataclasses.replace(split, metrics=metrics)).headline == "This model is not better than chance."


def test_one_baseline_that_is_not_beaten_is_named_with_the_figure(split: SplitResults) -> None:
    close = changed(split, baseline__pixel_neighbour__contrastive_accuracy=0.86)
    assert verdict(close).headline.startswith(
        "This model is not surely better than the baseline “most alike pixels” at: "
    )
    assert verdict(close).headline.endswith(": right partner found in a small group.")
    assert verdict(close).tone == "error"
    judged = verdict(changed(split, baseline__untrained__contrastive_accuracy=0.86, verdict__beats_baselines=1.0))
    assert judged.tone == "warning"
    assert judged.advice.startswith(
        "On the whole it beats every baseline, but it is not surely better than the baseline"
    )
    assert verdict(changed(split, verdict__beats_baselines=0.0)).headline == "This model does not beat every baseline."


def test_the_headline_table_has_intervals_and_all_baselines(page_of, data: PageData) -> None:
    text = page_of(data).section("headline").text
    for words in ("chance", "commonest text or grade", "most alike pixels", "untrained encoders", "perfect reader"):
        assert words in text
    assert "among 32 texts" in text
    assert "90.0 % 85.0–95.0 20.0 % 20.0 % 20.0 % 20.0 % 98.0 %" in text
    assert "0.950 0.900–1.000 0.200" in text
    assert "30.0 %" in text.split("only its own")[-1]


def test_no_name_of_metrics_json_is_in_the_text(page_of, data: PageData) -> None:
    text = page_of(data).text.split("As in params.yaml.")[0]
    assert re.findall(r"\b[a-z]+_[a-z0-9_]+\b", text) == []


def test_the_confusion_matrix_counts_and_says_how_many_are_wrong(page_of, data: PageData) -> None:
    page = page_of(data).section("grades")
    assert "9 images of 40 got another grade than the reader gave, 1 of them by more than one" in page.text
    assert "0 none 8 0 0 0 1 1 doubtful" in page.text
    assert "--heat: 89%" in page.html


def test_learning_curves_and_calibration_have_a_chart_each(page_of, data: PageData) -> None:
    page = page_of(data)
    assert [chart["aria-label"] for chart in page.section("training").of("svg", "chart")] == ["loss"]
    assert "validation images" in page.section("training").text
    confidence = page.section("confidence")
    assert len(confidence.of("svg", "chart")) == 2
    assert "Mean gap 2.1 %." in confidence.text
    assert "100.0 % 24.4 % 22.0 % 90.0 % 21.9 % 30.0 % 80.0 % 19.4 % 38.0 % 70.0 %" in confidence.text


def test_the_gallery_is_half_right_and_half_wrong(split: SplitResults) -> None:
    queries = gallery(split, 6)
    assert sorted(query.found[0].right for query in queries) == [False] * 3 + [True] * 3
    for query in queries:
        row = int(query.name.removeprefix("images/").removesuffix(".png"))
        assert query.text == f"text number {row % 10}"
        assert [text.right for text in query.found].count(True) == 1
        assert [text.similarity for text in query.found] == sorted(
            (text.similarity for text in query.found), reverse=True
        )
        assert {text.count for text in query.found} == {4}
        assert len({text.text for text in query.found}) == 5
    assert gallery(split, 6) == queries
    assert gallery(split, 0) == []


def test_a_text_of_the_same_study_is_right(split: SplitResults) -> None:
    alone = dataclasses.replace(
        split,
        predictions=split.predictions.iloc[:2],
        image_embeds=split.image_embeds[:2],
        text_embeds=split.text_embeds[:2],
    )
    assert all(text.right for query in gallery(alone, 2) for text in query.found)
    others = dataclasses.replace(alone, predictions=alone.predictions.assign(study_id=None))
    assert sorted(text.right for query in gallery(others, 2) for text in query.found) == [False, False, True, True]


@pytest.mark.parametrize("hits", [0.0, 1.0])
def test_a_gallery_of_one_kind_is_full_all_the_same(split: SplitResults, hits: float) -> None:
    table = split.predictions.assign(image_to_text_recall_at_1=hits)
    assert len({query.name for query in gallery(dataclasses.replace(split, predictions=table), 6)}) == 6
    table = table.drop(columns="image_to_text_recall_at_1")
    assert len(gallery(dataclasses.replace(split, predictions=table), 100)) == COUNT


def test_the_worst_mistakes_are_the_largest_then_the_surest(split: SplitResults) -> None:
    mistakes = worst_mistakes(split)
    assert [mistake.name for mistake in mistakes[:3]] == ["images/7.png", "images/38.png", "images/33.png"]
    assert mistakes[0].title == "Reader: 0 (none). Model: 4 (severe), 57.0 % sure."
    assert len(mistakes) == 8
    right = split.predictions.assign(kl_grade_predicted=split.predictions["kl_grade"].astype(int))
    assert worst_mistakes(dataclasses.replace(split, predictions=right)) == []


def test_a_mistake_keeps_its_own_image_where_others_have_no_grade(split: SplitResults) -> None:
    table = split.predictions.copy()
    table.loc[:6, "kl_grade"] = pd.NA
    asked: list[int] = []

    def looked(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return images(rows)

    mistakes = worst_mistakes(dataclasses.replace(split, predictions=table, images=looked))
    assert [f"images/{row}.png" for row in asked] == [mistake.name for mistake in mistakes]
    assert asked[0] == 7


def test_subgroups_flag_gaps_and_list_what_is_too_small(page_of, data: PageData) -> None:
    page = page_of(data).section("subgroups")
    assert "side: right (33 images): grade (Kellgren-Lawrence) exactly right 60.0 %, over all 85.0 %" in page.text
    assert "Too few images for a figure: view: skyline (3 images)." in page.text
    assert len(page.of("circle", "over")) == 1
    assert len(page.of("svg", "chart")) == 1


def test_disturbances_findings_places_probes_and_wordings_are_told(page_of, data: PageData) -> None:
    page = page_of(data)
    assert "Shift 10 % of the side 50.0 % (70.0–90.0) -40.0" in page.section("robustness").text
    marked = page.section("robustness").html.split('<tr class="marked">')[1].split("</tr>")[0]
    assert "Shift" in marked
    assert "Effusion 40 – 0.910" in page.section("findings").text
    better = "by contrast-to-noise ratio: hiding parts of the image; by overlap with the box (mean IoU): none."
    assert better in page.section("grounding").text
    assert len(page.section("grounding").of("img")) == 1
    assert "Linear probe, 1 % of the labels (12 images) 40.0 % ± 10.0 %" in page.section("probes").text
    assert "Mild OA. 2 70.0 % 0.600" in page.section("prompts").text


def test_maps_that_are_no_better_than_the_middle_are_said_to_locate_nothing(page_of, data: PageData) -> None:
    worse = tables()
    worse["grounding"][0] |= {"pointing_game": 0.4, "cnr": 0.1}
    page = page_of(dataclasses.replace(data, splits=[dataclasses.replace(data.shown, tables=worse)]))
    assert "these maps locate nothing" in page.section("grounding").text


def test_the_model_card_tells_data_params_revision_and_use(page_of, data: PageData) -> None:
    text = page_of(data).section("card").text
    for words in (
        "Not for clinical use",
        "0123abc",
        "fedcba98",
        "1,031,266",
        "train.learning_rate",
        "contrast local",
        "saved at: val loss",
    ):
        assert words in text
    assert "train.learning_rate" in text
    assert "tracking." not in text
    assert "not known" in page_of(dataclasses.replace(data, facts=ModelFacts({}))).section("card").text


def test_other_splits_have_their_headline_figures(page_of, data: PageData) -> None:
    train = dataclasses.replace(changed(data.shown, contrastive_accuracy=0.123), name="train")
    page = page_of(dataclasses.replace(data, splits=[train, data.shown]))
    assert "Evaluation on the test split" in page.text
    assert "12.3 %" in page.section("headline").text.split("The train split")[1]
    only = page_of(dataclasses.replace(data, splits=[train]))
    assert "the model was trained on" in only.section("headline").text
    assert "unseen" not in only.text


def test_what_was_not_measured_is_named_and_breaks_nothing(page_of, split: SplitResults) -> None:
    bare = dataclasses.replace(
        split, metrics={"rows": COUNT}, predictions=split.predictions[["img_path", "text"]], tables={}, overlays=()
    )
    page = page_of(PageData([bare], ModelFacts({}), Path("nowhere"), gallery=0))
    assert_stands_alone(page)
    assert [attributes["id"] for attributes in page.of("section")] == ["card", "absent"]
    assert "headline figures, learning curves, grades" in page.section("absent").text
    assert "What the model can do was not measured." in page.text


@pytest.mark.parametrize("missing", list(tables()))
def test_a_missing_table_leaves_its_part_out(page_of, data: PageData, missing: str) -> None:
    left = {name: rows for name, rows in tables().items() if name != missing}
    assert_stands_alone(page_of(dataclasses.replace(data, splits=[dataclasses.replace(data.shown, tables=left)])))


@pytest.mark.parametrize("missing", list(measured()))
def test_a_missing_metric_leaves_its_part_out(page_of, data: PageData, missing: str) -> None:
    left = {name: value for name, value in measured().items() if name != missing}
    assert_stands_alone(page_of(dataclasses.replace(data, splits=[dataclasses.replace(data.shown, metrics=left)])))


def test_nothing_in_the_data_becomes_markup(page_of, data: PageData) -> None:
    table = data.shown.predictions.assign(img_path=HOSTILE, text=HOSTILE)
    hostile = {
        name: [
            {key: HOSTILE if key in ("group", "column", "prompt", "level") else row[key] for key in row} for row in rows
        ]
        for name, rows in tables().items()
    }
    metrics = measured() | {"zero_shot_findings": {HOSTILE: {"auroc": 0.5}}}
    split = dataclasses.replace(
        data.shown, predictions=table, tables=hostile, metrics=metrics, overlays=[(HOSTILE, overlay()), (HOSTILE, b"?")]
    )
    facts = ModelFacts({"a": {HOSTILE: HOSTILE}}, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE})
    page = page_of(dataclasses.replace(data, splits=[split], facts=facts))
    assert_stands_alone(page)
    assert HOSTILE in page.text
    assert "This map cannot be shown." in page.text


def test_learning_curve_rows_are_the_finite_points(live: Path) -> None:
    rows = learning_curve_rows(live)
    assert rows[:2] == [
        {"curve": "loss", "split": "train", "step": 25, "value": 3.5},
        {"curve": "loss", "split": "train", "step": 50, "value": 2.5},
    ]
    assert len(rows) == 4
    assert learning_curve_rows(None) == []
    assert learning_curve_rows(live / "nowhere") == []


def test_plot_rows_are_those_of_the_page(split: SplitResults) -> None:
    assert confusion_rows(split.predictions)[7] == {"actual": 0, "predicted": 4}
    assert confusion_rows(split.predictions.drop(columns="kl_grade")) == []
    calibration = [*tables()["calibration"], {"probabilities": "raw", "confidence": 0.9, "accuracy": 0, "n": 0}]
    assert len(reliability_rows(calibration)) == 4
    curve = [{"coverage": (row + 1) / 5000, "risk": row / 5000} for row in reversed(range(5000))]
    thinned = risk_coverage_rows(curve)
    assert len(thinned) == RISK_POINTS
    assert (thinned[0]["coverage"], thinned[-1]["coverage"]) == (1 / 5000, 1.0)
    assert risk_coverage_rows([]) == []


def test_drawn_knees_are_said_to_be_no_patients(page_of, data: PageData) -> None:
    for csv, is_said in (("data/sample/train.csv", True), ("own/train.csv", False)):
        facts = dataclasses.replace(data.facts, params={"data": {"csv": csv}})
        assert ("no evidence about patients" in page_of(dataclasses.replace(data, facts=facts)).text) == is_said
