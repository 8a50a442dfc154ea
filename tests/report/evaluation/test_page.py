"""The page shows what was measured, stands alone, and bears whatever is missing or hostile."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from knee_siglip.core.errors import UserError
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.report.evaluation.page import SECTIONS, write_page
from knee_siglip.report.evaluation.results import read_results
from knee_siglip.report.evaluation.sections import read_curve
from knee_siglip.report.evaluation.wording import headline_words
from pages import Page, assert_shows_well, assert_stands_alone, set_width
from toys import KNEE

HOSTILE = '<script>alert("x")</script>\'"><img src=x onerror=y>'
RESULTS = Path(__file__).with_name("results")
YES_NO = {
    "subject": "wrist",
    "label_column": "kl",
    "label_title": "fracture",
    "label_short": "fracture",
    "labels": {"0": "no fracture", "4": "fracture"},
    "positive": {"name": "oa", "title": "fracture", "lowest": "4"},
    "queries": ["A fracture."],
}
TABLES = sorted(path.stem for path in (RESULTS / "tables").iterdir())


def test_it_stands_alone_with_every_section_in_order(evaluation) -> None:
    page = evaluation.page()
    assert_stands_alone(page)
    assert [attributes["id"] for attributes in page.of("section")] == list(SECTIONS)
    assert [link["href"] for link in page.of("a")] == [f"#{anchor}" for anchor in SECTIONS]
    assert len(page.html) < 2_000_000


def test_counts_and_mistakes_lead_to_their_cases(evaluation) -> None:
    (evaluation.folder / "predictions.parquet").touch()
    page = evaluation.page()
    assert "cases.html" in {link["href"] for link in page.of("a")}
    counts = {link["href"] for link in page.section("grades").of("a")}
    assert {"cases.html#actual=0&predicted=0", "cases.html#actual=0&predicted=4"} <= counts
    assert "cases.html#actual=4&predicted=0" not in counts  # none such
    rows = [example["row"] for example in evaluation.json("examples")["mistakes"]]
    assert [link["href"] for link in page.section("mistakes").of("a")] == [f"cases.html#case={row}" for row in rows]


def first_lines(page) -> str:
    return page.text[: page.text.index("Not for clinical use")]


def test_a_good_model_says_so_with_what_it_stands_on(evaluation) -> None:
    shutil.rmtree(evaluation.folder / "tables")
    evaluation.set_metrics({"studies_of_unknown_patients": 0})
    said = first_lines(evaluation.page())
    assert "Usable. The model ranks a right text first for 80 of 100 unseen images" in said
    assert "Basis: 40 images, 20 patients" in said
    assert "Quadratic weighted kappa" in said
    assert "0.900 0.850–0.950" in said
    assert "Osteoarthritis (grade 2 and above) 77.0 % (50.0–92.0) 87.5 % (too few units (8 of 10)) 90.0 %" in said
    assert "were not searched for mistakes" in said


def test_the_worst_slices_lead_to_their_cases(evaluation) -> None:
    (evaluation.folder / "predictions.parquet").touch()
    page = evaluation.page()
    assert "effusion, grade 2: 12 of 31 images wrong, 38.7 % (24.0–56.0); elsewhere 4.0 %, adjusted p below" in (
        first_lines(page)
    )
    links = [link["href"] for link in page.of("a") if link["href"].startswith("cases.html#")]
    assert links[:2] == ["cases.html#finding=effusion&actual=2", "cases.html#in.side=right"]
    assert "3 slices (by grade, finding and column, and by two of these) were tested" in first_lines(page)


def test_of_two_labels_nothing_is_said_of_grades_and_their_distance(evaluation) -> None:
    facts = evaluation.json("facts")
    facts["params"] |= {"task": YES_NO, "evaluate": {"label_prompts": {"0": ["No fracture."], "4": ["A fracture."]}}}
    evaluation.write("facts", facts)
    (evaluation.folder / "plots/confusion.csv").write_text("actual,predicted\n0,0\n4,4\n4,0\n")
    examples = evaluation.json("examples")
    mistakes = [{**mistake, "actual": 0, "predicted": 1} for mistake in examples["mistakes"]]
    evaluation.write("examples", {**examples, "mistakes": mistakes})
    evaluation.set_cells("prompts", slice(None), grade="4")
    evaluation.set_cells("slices", slice(1), filters="actual=4")
    page = evaluation.page()
    said = page.text[: page.text.index("Model card Intended use")]
    assert re.findall(r".{30}grade.{30}", said, re.IGNORECASE) == []
    assert "is right about fracture (0 or 4) for" in said
    assert "Kappa (Cohen's) Agreement on the label beyond chance" in said
    assert "1 of 3 images got a wrong label. Shading" in said
    assert "fracture: 4: 12 of 31 images wrong" in said


def test_a_collapsed_model_says_so_first(evaluation) -> None:
    confusion = evaluation.folder / "plots/confusion.csv"
    confusion.write_text("actual,predicted\n0,0\n3,0\n4,0\n")
    kappa = "quadratic_weighted_kappa"
    evaluation.set_metrics(
        {
            "zero_shot_kl.grades_predicted": 1,
            "zero_shot_kl.grade_0.recall": 1.0,
            f"zero_shot_kl.{kappa}": 0.0,
            f"baseline.untrained.zero_shot_kl.{kappa}": 0.31,
            f"linear_probe.share_100.{kappa}": 0.57,
            "contrastive_accuracy_ci_low": 0.01,
        }
    )
    said = first_lines(evaluation.page())
    assert "Unusable. This model has collapsed: all graded images of the test split get one grade." in said
    assert "Before this training it did better: quadratic weighted kappa 0.31, now 0.00." in said
    assert "All 3 graded images of the test split get Kellgren-Lawrence grade 0." in said
    assert "kappa 0.57: the image encoder has learned it, the text side has not" in said


def test_one_patient_is_no_basis_for_a_verdict(evaluation) -> None:
    metrics = evaluation.json("metrics")["test"]
    few = {f"{name}_ci_units": 1 for name in headline_words(KNEE)}
    flat = {name: value for name, value in flatten(metrics).items() if "_ci_" not in name}
    evaluation.write("metrics", {"test": nest(flat | few | {"patients": 1})})
    shutil.rmtree(evaluation.folder / "tables")
    page = evaluation.page()
    said = first_lines(page)
    assert "40 images 1 patient " in page.text
    assert "Not judged. The test split is too small to judge the model: it holds 1 patient" in said
    assert "too few units (1 of 10)" in said
    assert "Usable" not in said


def test_a_browser_shows_and_prints_it_and_cuts_no_table_off(browser, evaluation) -> None:
    rows = [f"test,view ap,60,{name},0.92,0.86,0.97,55\n" for name in headline_words(KNEE)]
    with (evaluation.folder / "tables/studies.csv").open("a") as file:
        file.writelines(rows)
    evaluation.page()
    assert_shows_well(browser, evaluation.page_file)
    set_width(browser, 1280)
    cut_off = "return Array.from(document.querySelectorAll('.scroll')).filter(box => box.scrollWidth > box.clientWidth)"
    assert browser.execute_script(f"{cut_off}.map(box => box.ariaLabel)") == []


def test_the_same_results_give_the_same_bytes(evaluation, tmp_path: Path) -> None:
    first = evaluation.page().html
    assert evaluation.page().html == first
    assert str(tmp_path) not in first


def test_the_headline_table_has_intervals_and_all_baselines(evaluation) -> None:
    evaluation.set_metrics({"contrastive_accuracy_expected": 0.912})
    text = evaluation.page().section("headline").text
    baselines = ("chance", "most frequent text or label", "nearest neighbour by pixels", "before training")
    for words in (*baselines, "perfect reader"):
        assert words in text
    assert "of 32 texts for an image" in text
    assert "Over all groups, not those of one shuffle, 91.2 % is expected. 90.0 % 85.0–95.0" in text
    assert "90.0 % 85.0–95.0 20.0 % 20.0 % 20.0 % 20.0 % 98.0 %" in text
    assert "0.950 0.900–1.000 0.200" in text
    assert "30.0 %" in text.split("exact pair only")[-1]


def test_studies_and_views_stand_beside_each_other(evaluation) -> None:
    text = evaluation.page().section("headline").text.split("Studies and views")[1]
    assert "whole studies n = 40 95.0 % (91.0–98.0) 0.700" in text
    assert "single images of studies with several n = 80 90.0 % (85.0–95.0)" in text
    assert "view ap n = 60 92.0 % (86.0–97.0)" in text


def test_no_name_of_metrics_json_is_in_the_text(evaluation) -> None:
    text = evaluation.page().text.split("As in params.yaml.")[0]
    assert re.findall(r"\b[a-z]+_[a-z0-9_]+\b", text) == []


def test_the_confusion_matrix_counts_and_says_how_many_are_wrong(evaluation) -> None:
    page = evaluation.page().section("grades")
    assert "5 of 20 images got a wrong grade, 1 of them by more than one grade" in page.text
    assert "0 none 4 0 0 0 1 1 doubtful" in page.text
    assert "--heat: 80%" in page.html


def test_reviewers_find_flow_detectable_difference_readers_and_calibration(evaluation) -> None:
    evaluation.set_metrics(
        {
            "calibration.oa.slope": 0.8,
            "calibration.oa.slope_ci_low": 0.6,
            "calibration.oa.slope_ci_high": 1.1,
            "calibration.oa.intercept": 0.1,
            "calibration.oa.intercept_ci_units": 7,
            "readers.n": 30,
            "readers.between.quadratic_weighted_kappa": 0.81,
            "readers.between.quadratic_weighted_kappa_ci_low": 0.7,
            "readers.between.quadratic_weighted_kappa_ci_high": 0.9,
            "readers.model_to_second.quadratic_weighted_kappa": 0.78,
            "readers.model_to_second.quadratic_weighted_kappa_ci_units": 6,
        }
    )
    facts = evaluation.json("facts")
    evaluation.write("facts", facts | {"counts": {"test": {"rows": 40, "graded_rows": 20}}})
    results = replace(evaluation.results(), validation={"rows": 45, "dropped": 5})
    write_page(evaluation.page_file, results)
    section = Page(evaluation.page_file.read_text(encoding="utf-8")).section("reviewers")
    assert "slope 0.80 (0.60 to 1.10), intercept 0.10 (too few units (7 of 10))" in section.text
    assert "On 30 images two readers agree at kappa 0.810 (0.700–0.900), model and second reader" in section.text
    assert "dropped by validation 5 test split 40 20 / 20 measured on the test split 40" in section.text
    assert "Grade accuracy 7.1 points" in section.text  # an interval 10 points wide: 2.8 / 3.92 of it
    assert "Grade 0 30.0 % 25.0 %" in section.text
    assert len(section.of("svg", "chart")) == 1


def test_learning_curves_and_calibration_have_a_chart_each(evaluation) -> None:
    page = evaluation.page()
    assert [chart["aria-label"] for chart in page.section("training").of("svg", "chart")] == ["loss"]
    assert "validation images" in page.section("training").text
    confidence = page.section("confidence")
    assert len(confidence.of("svg", "chart")) == 2
    assert "Expected calibration error 2.1 %." in confidence.text
    assert "80.0 % 61.0 % 75.0 % (15 images) 20.0 % 7.0–42.0" in confidence.text


def test_operating_points_have_intervals_or_say_why_not(evaluation) -> None:
    text = evaluation.page().section("operating").text
    found = "77.0 % (50.0–92.0) 87.5 % (too few units (8 of 10)) 90.0 % (60.0–98.0) 0.400"
    assert f"Osteoarthritis (grade 2 and above) 12 {found}" in text
    assert "Effusion" not in text  # no threshold was better than a guess


def test_learning_curves_are_the_finite_points(evaluation) -> None:
    metrics = evaluation.live / "plots" / "metrics"
    assert read_curve(metrics / "train" / "loss.tsv", "loss") == [(25, 3.5), (50, 2.5)]
    assert len(read_curve(metrics / "val" / "loss.tsv", "loss")) == 2
    assert read_curve(metrics / "nowhere.tsv", "loss") == []


def test_the_gallery_shows_which_text_is_right(evaluation) -> None:
    page = evaluation.page().section("gallery")
    assert [image["alt"] for image in page.of("img")] == ["Radiograph images/3.png", "Radiograph images/8.png"]
    assert len(page.of("li", "good")) == 2
    assert len(page.of("li", "error")) == 4
    assert "✓ text number 3 similarity 0.900, on 4 images" in page.text


def test_a_mistake_says_what_reader_and_model_saw(evaluation) -> None:
    page = evaluation.page().section("mistakes")
    assert "Reader: 0 none. Model: 4 severe, confidence 57.0 %. text number 7" in page.text
    assert len(page.of("img")) == 1


def test_subgroups_flag_gaps_and_list_what_is_too_small(evaluation) -> None:
    page = evaluation.page().section("subgroups")
    assert "side: right (33 images): grade accuracy 60.0 %, overall 85.0 %" in page.text
    assert "Suppressed, too few images: view: skyline (3 images)." in page.text
    assert len(page.of("circle", "over")) == 1
    assert len(page.of("svg", "chart")) == 1


def test_a_group_that_looks_like_a_number_keeps_its_name(evaluation) -> None:
    evaluation.set_cells("subgroups", slice(1, 2), group="007")
    assert "side: 007 (33 images)" in evaluation.page().section("subgroups").text


def test_disturbances_findings_places_probes_and_wordings_are_told(evaluation) -> None:
    page = evaluation.page()
    assert "Shift 10 % of the side 50.0 % (70.0–90.0) -40.0" in page.section("robustness").text
    marked = page.section("robustness").html.split('<tr class="marked">')[1].split("</tr>")[0]
    assert "Shift" in marked
    assert "Effusion 40 – 0.910" in page.section("findings").text
    assert "too few patients with boxes to tell" in page.section("grounding").text
    assert len(page.section("grounding").of("img")) == 1
    assert "Linear probe, 1 % of the labels (12 images) 40.0 % ± 10.0 %" in page.section("probes").text
    assert "Mild OA. 2 70.0 % 0.600 -0.300" in page.section("prompts").text
    assert "Left out" not in page.section("prompts").text


def test_prompts_that_do_not_count_are_named(evaluation) -> None:
    evaluation.write("facts", evaluation.json("facts") | {"left_out_prompts": ["Gonarthrosis.", HOSTILE]})
    page = evaluation.page()
    assert "hold words of no training text: “Gonarthrosis.”, “<script>" in page.section("prompts").text
    assert HOSTILE not in page.html


def test_a_probe_that_learnt_from_a_sample_says_so(evaluation) -> None:
    metrics = evaluation.json("metrics")
    metrics["test"]["linear_probe"] |= {"train_rows": 50_000, "train_rows_available": 812_345}
    evaluation.write("metrics", metrics)
    assert "50,000 of 812,345 graded training images" in evaluation.page().section("probes").text


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (0.1, "contrast-to-noise ratio (CNR): occlusion; mean IoU with the box: none."),
        (0.0, "no difference's interval is above 0"),
    ],
)
def test_maps_beat_the_middle_only_where_an_interval_says_so(evaluation, low, said) -> None:
    evaluation.set_cells("grounding", slice(1), cnr_over_prior_ci_low=low, miou_over_prior_ci_low=-0.1)
    text = evaluation.page().section("grounding").text
    assert said in text


def test_maps_are_told_with_their_intervals(evaluation) -> None:
    evaluation.set_cells("grounding", slice(1), pointing_game_ci_low=0.52, pointing_game_ci_high=0.68)
    assert "60.0 % (52.0–68.0)" in evaluation.page().section("grounding").text


def test_the_model_card_tells_data_params_revision_and_use(evaluation) -> None:
    text = evaluation.page().section("card").text
    told = ("Not for clinical use", "0123abc", "fedcba98", "9876beef", "1,031,266", "contrast local")
    for words in (*told, "train.learning_rate 0.001", "saved at: val loss"):
        assert words in text
    (evaluation.folder / "facts.json").unlink()
    assert "code revision unknown" in evaluation.page().section("card").text


@pytest.mark.parametrize(("csv", "is_said"), [("data/sample/train.csv", True), ("own/train.csv", False)])
def test_drawn_knees_are_said_to_be_no_patients(evaluation, csv: str, is_said: bool) -> None:
    evaluation.write("facts", {"params": {"data": {"csv": csv}}})
    assert ("no evidence about patients" in evaluation.page().text) == is_said


def test_other_splits_have_their_headline_metrics(evaluation) -> None:
    test = evaluation.json("metrics")["test"]
    train = test | {"contrastive_accuracy": 0.123}
    evaluation.write("metrics", {"train": train, "test": test})
    page = evaluation.page()
    assert "Evaluation on the test split" in page.text
    assert "12.3 %" in page.section("headline").text.split("Beside the other splits")[1]
    assert "external" not in page.text
    evaluation.write("metrics", {"train": train})
    only = evaluation.page()
    assert "images the model was trained on" in only.section("headline").text
    assert "unseen" not in only.text


def test_a_second_test_set_stands_beside_the_first_with_intervals(evaluation) -> None:
    test = evaluation.json("metrics")["test"]
    external = flatten(test) | {
        "rows": 123,
        "zero_shot_kl.quadratic_weighted_kappa": 0.456,
        "zero_shot_kl.quadratic_weighted_kappa_ci_low": 0.401,
        "zero_shot_kl.quadratic_weighted_kappa_ci_high": 0.512,
    }
    evaluation.write("metrics", {"test": test, "external": nest(external)})
    page = evaluation.page()
    table = page.section("headline").text.split("Beside the other splits")[1]
    assert "test external" in table
    assert "123" in table
    assert "0.456 (0.401–0.512)" in table
    assert "Evaluation on the test split" in page.text


def test_what_was_not_measured_is_named_and_breaks_nothing(evaluation) -> None:
    shutil.rmtree(evaluation.folder)
    shutil.rmtree(evaluation.live)
    evaluation.write("metrics", {"test": {"rows": 40}})
    page = evaluation.page()
    assert_stands_alone(page)
    assert [attributes["id"] for attributes in page.of("section")] == ["card", "absent"]
    assert "headline metrics, learning curves, zero-shot grades" in page.section("absent").text
    assert "Neither retrieval nor grading was measured." in page.text


def test_a_folder_without_an_evaluation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json does not exist; run the evaluate stage first"):
        read_results(tmp_path, tmp_path)


@pytest.mark.parametrize("missing", TABLES)
def test_a_missing_table_leaves_its_part_out(evaluation, missing: str) -> None:
    (evaluation.folder / "tables" / f"{missing}.csv").unlink()
    assert_stands_alone(evaluation.page())


@pytest.mark.parametrize("missing", ["calibration", "contrastive_accuracy", "grounding", "linear_probe", "retrieval"])
def test_a_missing_metric_leaves_its_part_out(evaluation, missing: str) -> None:
    metrics = evaluation.json("metrics")["test"]
    del metrics[missing]
    evaluation.write("metrics", {"test": metrics})
    assert_stands_alone(evaluation.page())


def test_nothing_in_the_data_becomes_markup(evaluation) -> None:
    evaluation.set_cells("subgroups", slice(None), column=HOSTILE, group=HOSTILE)
    evaluation.set_cells("robustness", slice(None), level=HOSTILE)
    evaluation.set_cells("prompts", slice(None), prompt=HOSTILE)
    metrics = evaluation.json("metrics")
    metrics["test"]["zero_shot_findings"] = {HOSTILE: {"auroc": 0.5}}
    evaluation.write("metrics", metrics)
    facts = {"params": {"a": {HOSTILE: HOSTILE}}, "revision": HOSTILE, "cache": {HOSTILE: HOSTILE}}
    evaluation.write("facts", facts)
    examples = evaluation.json("examples")
    for example in (*examples["gallery"], *examples["mistakes"], *examples["maps"]):
        example |= {"title": HOSTILE, "text": HOSTILE, "img_path": HOSTILE}
    evaluation.write("examples", examples)
    page = evaluation.page()
    assert_stands_alone(page)
    assert HOSTILE in page.text


def test_a_damaged_picture_is_said_not_to_be_shown(evaluation) -> None:
    (evaluation.folder / "figures" / "grounding_1.jpg").write_bytes(b"?")
    (evaluation.folder / "pictures" / "mistakes_1.png").unlink()
    page = evaluation.page()
    assert page.section("grounding").text.count("This picture cannot be shown.") == 1
    assert page.section("mistakes").text.count("This picture cannot be shown.") == 1
