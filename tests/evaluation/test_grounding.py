"""From boxes in a column to figures, tables and pictures."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.evaluation import grounding
from knee_siglip.evaluation.case_maps import over_picture
from knee_siglip.evaluation.evaluate import embed
from knee_siglip.evaluation.grounding import grounding_report
from knee_siglip.evaluation.regions import regions_of
from knee_siglip.explain.maps import METHODS
from knee_siglip.explain.overlays import draw_overlay, missing_reason
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.metrics.grounding import centre_prior, grounding_metrics
from knee_siglip.model.embedding import ensemble

FIGURES = {"cnr", "cnr_signed", "pointing_game", "miou"}

BOXES = [("effusion", [0, 0, 0.5, 0.5]), ("effusion", [0.5, 0.5, 1, 1]), ("loose_body", [0.5, 0, 1, 0.5])]


def cell(*boxes):
    return json.dumps([{"finding": name, "box": box} for name, box in boxes])


@pytest.fixture
def data(files, params):
    return embed(params, files, device="cpu")


@pytest.fixture
def boxed(data):
    """The test split; all images but the first one have boxes."""
    split = data.splits["test"]
    cells = ["[]"] + [cell(*BOXES)] * (len(split) - 1)
    return replace(split, rows=split.rows.assign(findings=cells))


def limited(data, images):
    settings = data.params.grounding.model_copy(update={"images": images})
    return replace(data, params=data.params.model_copy(update={"grounding": settings}))


def sides(picture):
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        return image.format, image.size


def test_boxes_of_one_finding_become_one_region(boxed):
    regions = regions_of(boxed, Transform(28, "pad", "none"))
    assert [(region.row, region.finding) for region in regions[:3]] == [
        (1, "effusion"),
        (1, "loose_body"),
        (2, "effusion"),
    ]
    np.testing.assert_allclose(regions[0].boxes, [[0, 0, 14, 14], [14, 14, 28, 28]])
    mask = regions[0].mask(28)
    assert mask[:14, :14].all()
    assert mask[14:, 14:].all()
    assert mask.sum() == 2 * 14 * 14


def test_boxes_follow_an_image_that_is_padded(boxed):
    wide = replace(boxed, rows=boxed.rows.assign(width=60))
    region = regions_of(wide, Transform(28, "pad", "none"))[1]
    np.testing.assert_allclose(region.boxes, [[14, 7, 28, 14]])


def test_what_is_cropped_away_is_no_region(boxed):
    cells = ["[]"] * (len(boxed) - 1) + [cell(("effusion", [0, 0, 0.2, 1]), ("varus", [0.3, 0, 0.6, 1]))]
    wide = replace(boxed, rows=boxed.rows.assign(width=60, findings=cells))
    assert [region.finding for region in regions_of(wide, Transform(28, "crop", "none"))] == ["varus"]


@pytest.mark.parametrize("text", ["", None, "Joint effusion.", '["effusion"]', '{"finding": 1}', "[]", "7"])
def test_a_column_of_other_findings_has_no_boxes(boxed, text):
    rows = boxed.rows.assign(findings=[text] * len(boxed))
    assert regions_of(replace(boxed, rows=rows), Transform(28, "pad", "none")) == []


@pytest.mark.parametrize("box", [[10, 10, 200, 200], [0.5, 0, 0.1, 1], [0, 0, 1], "all", None, [0, 0, float("nan"), 1]])
def test_a_box_that_is_none_is_named(boxed, box):
    rows = boxed.rows.assign(findings=["[]"] * 2 + [cell(("effusion", box))] + ["[]"] * (len(boxed) - 3))
    with pytest.raises(UserError, match=r"2\.png: findings has the box .*shares \(0 to 1\)"):
        regions_of(replace(boxed, rows=rows), Transform(28, "pad", "none"))


def test_the_report_tells_every_method_and_finding(boxed, data):
    report = grounding_report(boxed, data)
    methods = [*METHODS, "centre_prior"]
    assert [row["method"] for row in report.table] == methods
    assert [(row["finding"], row["method"], row["images"]) for row in report.findings] == [
        (finding, method, 7) for finding in ("effusion", "loose_body") for method in methods
    ]
    assert (report.metrics.pop("grounding.images"), report.metrics.pop("grounding.patients")) == (7, 4)
    assert set(report.metrics) == {f"grounding.{method}.{name}" for method in methods for name in FIGURES}
    for row in report.table:
        for name in FIGURES:
            parts = [part[name] for part in report.findings if part["method"] == row["method"]]
            assert row[name] == report.metrics[f"grounding.{row['method']}.{name}"] == pytest.approx(np.mean(parts))


def test_intervals_and_the_difference_from_the_middle_need_enough_patients(boxed, data, monkeypatch):
    few = grounding_report(boxed, data).table[0]
    assert few["miou_ci_units"] == few["miou_over_prior_ci_units"] == 4
    monkeypatch.setattr("knee_siglip.metrics.bootstrap.FEWEST_UNITS", 3)
    *methods, prior = grounding_report(boxed, data).table
    for row in methods:
        assert row["miou_ci_low"] <= row["miou"] <= row["miou_ci_high"]
        assert row["miou_over_prior"] == pytest.approx(row["miou"] - prior["miou"])
        assert row["miou_over_prior_ci_low"] <= row["miou_over_prior"] <= row["miou_over_prior_ci_high"]
    assert "miou_over_prior" not in prior


def test_the_centre_prior_is_measured_on_the_same_regions(boxed, data):
    (row,) = [row for row in grounding_report(boxed, data).findings if row["method"] == "centre_prior"][1:]
    expected = grounding_metrics(centre_prior(28), regions_of(boxed, data.pixels.transform)[1].mask(28))
    assert {name: row[name] for name in FIGURES} == pytest.approx(expected)


def test_a_map_is_measured_on_the_region_of_its_own_finding_and_image(boxed, data, monkeypatch):
    """Each image has its effusion elsewhere: maps that know where would not hit, were they mixed up."""
    corners = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    cells = [cell(("effusion", corners[row % 4]), ("loose_body", corners[(row + 1) % 4])) for row in range(len(boxed))]
    split = replace(boxed, rows=boxed.rows.assign(findings=cells))
    effusion = grounding.finding_directions(split, data, {"effusion"})["effusion"]
    row_of = {data.pixels[split.numbers[[row]]].tobytes(): row for row in range(len(split))}

    def knows(model, pixels, phrases, method, window, dtype):
        found = []
        for image, texts in zip(pixels, phrases, strict=True):
            row = row_of[image.numpy().tobytes()]
            turns = [0 if np.array_equal(text.numpy(), effusion) else 1 for text in texts]
            found.append(np.stack([np.eye(4, dtype=np.float32)[(row + turn) % 4].reshape(2, 2) for turn in turns]))
        return [torch.from_numpy(maps) for maps in found]

    monkeypatch.setattr(grounding, "phrase_maps", knows)
    report = grounding_report(split, data)
    assert report.metrics["grounding.gradient.pointing_game"] == 1
    assert report.metrics["grounding.gradient.cnr_signed"] > 1


def test_a_finding_is_looked_for_with_its_prompts_else_by_its_name(boxed, data):
    directions = grounding.finding_directions(boxed, data, {"effusion", "loose_body"})
    positive, negative = boxed.prompts.findings["effusion"]
    np.testing.assert_allclose(directions["effusion"], positive - negative)
    named = grounding.embed_texts(data.checkpoint, ["loose body"])[0]
    np.testing.assert_allclose(directions["loose_body"], named - ensemble(boxed.prompts.grades[0]))


def test_at_most_so_many_images_are_measured(boxed, data):
    report = grounding_report(boxed, limited(data, 3))
    assert report.metrics["grounding.images"] == 3
    assert {row["images"] for row in report.findings} == {3}
    nothing = grounding_report(boxed, limited(data, 0))
    assert (nothing.metrics, nothing.table, nothing.findings, nothing.overlays) == ({}, [], [], [])


def test_equal_inputs_give_equal_reports(boxed, data):
    assert grounding_report(boxed, data) == grounding_report(boxed, data)


def test_overlays_show_each_finding_before_any_twice(boxed, data):
    overlays = grounding_report(boxed, data).overlays
    assert [title for title, _ in overlays[:3]] == ["effusion: 1.png", "loose body: 1.png", "effusion: 2.png"]
    assert len(overlays) == 8
    for _, picture in overlays:
        assert sides(picture) == ("JPEG", (468, 208))
        assert len(picture) <= 30_000


@pytest.mark.parametrize("column", [None, "a report's own words"])
def test_without_boxes_there_are_pictures_that_say_so(data, column):
    split = data.splits["test"]
    if column:
        split = replace(split, rows=split.rows.assign(findings=column))
    report = grounding_report(split, data)
    assert (report.metrics, report.table, report.findings) == ({}, [], [])
    assert report.overlays[0][0] == "0.png, its own text, no boxes known: normal knee"
    assert len(report.overlays) == 8
    assert all(sides(picture) == ("JPEG", (468, 208)) for _, picture in report.overlays)


def test_an_overlay_is_coloured_where_the_map_is_high_alone():
    pixels = np.full((56, 56), 100, dtype=np.uint8)
    heat = np.full((56, 56), -1.0)
    heat[:28, :28] = 3
    box = np.array([[28.0, 28.0, 42.0, 42.0]])
    with Image.open(io.BytesIO(draw_overlay(pixels, heat, box))) as image:
        shown = np.asarray(image.convert("RGB")).astype(int)
    plain, mapped = shown[:, :208], shown[:, 216:412]
    assert np.abs(plain[:90] - 100).max() < 8
    assert np.abs(mapped[:90, 116:] - 100).max() < 8
    assert (mapped[20:80, 20:80] - 100).max(axis=2).min() > 40
    for half in (plain, mapped):
        assert half[104, 130, 2] - half[104, 130, 0] > 40


def test_the_scale_is_the_same_for_every_map_and_what_is_nowhere_is_not_coloured():
    pixels, nowhere = np.full((56, 56), 100, dtype=np.uint8), np.zeros((0, 4))

    def shown(heat, **how):
        with Image.open(io.BytesIO(draw_overlay(pixels, np.full((56, 56), heat), nowhere, **how))) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    weak, strong, missing = shown(0.3), shown(3.0), shown(3.0, missing=True)
    assert np.abs(weak[100:190, 228:400] - 100).max() < 25
    assert np.abs(strong[100:190, 228:400] - 100).max() > 80
    assert np.abs(missing[100:190, 228:400] - 100).max() < 8
    colours = [picture[:, 430] for picture in (weak, strong, missing)]  # of the scale
    assert np.ptp(colours[0].sum(axis=1)) > 300
    assert all(np.abs(found - colours[0]).max() < 8 for found in colours)


@pytest.mark.parametrize(
    ("peak", "margin", "said"), [(2.0, 1.1, ""), (2.0, 0.9, "fits 'normal' about as well"), (0.4, 1.1, "no place")]
)
def test_a_phrase_is_nowhere_where_nothing_speaks_for_it(peak, margin, said):
    reason = missing_reason(np.array([[-1.0, peak]]), margin, "normal")
    assert reason.startswith(said) if not said else said in reason
    assert bool(reason) == bool(said)


def test_a_map_without_evidence_and_a_box_at_the_edge_can_be_drawn():
    pixels = np.zeros((28, 28), dtype=np.uint8)
    picture = draw_overlay(pixels, np.zeros((28, 28)), np.array([[-10.0, -10.0, 99.0, 99.0]]))
    assert sides(picture) == ("JPEG", (468, 208))


def test_the_worst_grades_and_every_measured_region_have_a_map(boxed, data):
    cases = grounding_report(boxed, data).cases
    regions = regions_of(boxed, data.pixels.transform)
    assert [(case["row"], case["title"].replace(" ", "_")) for case in cases if "rather" not in case["title"]] == [
        (region.row, region.finding) for region in regions
    ]
    errors = boxed.predicted[boxed.graded] != boxed.grades
    mistaken = {case["row"] for case in cases if "rather than" in case["title"]}
    assert mistaken <= set(boxed.graded[errors].tolist())
    assert len(mistaken) == min(errors.sum(), 16)
    for case in cases:
        assert np.shape(case["heat"]) == (24, 24)


def test_a_case_and_its_overlay_say_not_found_by_the_rule_of_every_map(boxed, data):
    """The whole image must fit the phrase, not only one place."""
    direction = grounding.finding_directions(boxed, data, {"effusion"})["effusion"]
    fits, against = boxed.image_embeds @ direction, boxed.task.findings["effusion"].negative[0]
    sides = [replace(boxed, image_embeds=sign * np.sign(fits)[:, None] * boxed.image_embeds) for sign in (-1, 1)]
    unlike, alike = (grounding_report(replace(split, logit_scale=1e5), data) for split in sides)
    said = {case["missing"] for case in unlike.cases if case["title"] == "effusion"}
    assert said == {f"the image fits {against!r} about as well, or better"}
    assert {case["missing"] for case in alike.cases if case["title"] == "effusion"} == {""}
    assert alike.overlays[0] != unlike.overlays[0]


@pytest.mark.parametrize(("fit", "shown"), [("pad", (1, 1)), ("crop", (1, 0.5))])
def test_a_map_covers_the_original_picture(fit, shown):
    """Of an image twice as wide as high: all of it was seen, or the middle half."""
    seen = over_picture(np.ones((28, 28)), Transform(28, fit, "none"), height=30, width=60) > 0
    assert (seen.any(axis=1).mean(), seen.any(axis=0).mean()) == shown
