"""The evaluation page: the verdict, what it stands on, where the model fails, and what it is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knee_siglip.core.nesting import flatten
from knee_siglip.params.sections import DataParams
from knee_siglip.report.evaluation import reviewers, sections, stress
from knee_siglip.report.evaluation.answer import answer_card
from knee_siglip.report.evaluation.diagnosis import remarks
from knee_siglip.report.evaluation.examples import MAP_SIDE, cards, worst_mistakes
from knee_siglip.report.evaluation.results import EvaluationResults
from knee_siglip.report.evaluation.verdict import verdict
from knee_siglip.report.evaluation.wording import BASELINE_MEANINGS, BASELINES, at, is_yes_no, labelled, noun
from knee_siglip.report.html.numbers import leaves, number, readable
from knee_siglip.report.html.rendering import write_html
from knee_siglip.report.html.svg import clip
from knee_siglip.report.html.tables import Table
from knee_siglip.tables.ids import describe_units

TILES = {
    "rows": ("image", "images"),
    "patients": ("patient", "patients"),
    "studies_of_unknown_patients": ("study of an unknown patient", "studies of unknown patients"),
    "images_of_unknown_patients": ("image of an unknown patient", "images of unknown patients"),
    "distinct_texts": ("distinct text", "distinct texts"),
}

SECTIONS = {
    "headline": "Headline metrics",
    "training": "Learning curves",
    "grades": "Zero-shot grades",
    "operating": "Operating points",
    "confidence": "Calibration",
    "reviewers": "What reviewers ask",
    "gallery": "Retrieval examples",
    "mistakes": "Largest grading errors",
    "findings": "Zero-shot findings",
    "grounding": "Grounding",
    "subgroups": "Subgroups",
    "robustness": "Robustness",
    "probes": "Linear probes",
    "prompts": "Prompt sensitivity",
    "card": "Model card",
}
"""Anchor to title, in page order. Sections without measurements are listed at the end instead."""

YES_NO_SECTIONS = {"grades": "Zero-shot labels", "mistakes": "Surest mistakes"}

VALUE_LENGTH = 240
"""Characters of a value that the table of params shows: prompts are long lists."""


def write_page(path: Path, results: EvaluationResults) -> None:
    """Write the page: one HTML file that asks for nothing else, and whose bytes depend on its content alone.

    Shown in full is the test split, or the first one; of the others the headline metrics.
    """
    content = {**_measured(results), **_failures(results), "card": _fact_tables(results.facts)}
    split = results.shown
    tiles = TILES | {"graded_rows": (f"{labelled(split.task)} image", f"{labelled(split.task)} images")}
    titles = SECTIONS | (YES_NO_SECTIONS if is_yes_no(split.task) else {})
    write_html(
        path,
        "knee_siglip.report.evaluation",
        "evaluation.html.j2",
        split=split.name,
        task=split.task,
        has_cases=results.has_cases,
        has_external=results.external is not None,
        units=describe_units(split.units) if split.units else "",
        synthetic=at(results.facts, "params.data.csv") == DataParams().csv,
        verdict=verdict(split),
        remarks=remarks(results),
        answer=answer_card(results),
        noun=noun(split.task),
        tiles=[
            (value, names[value != 1]) for key, names in tiles.items() if (value := at(split.metrics, key)) is not None
        ],
        sections={anchor: title for anchor, title in titles.items() if _holds(content[anchor])},
        absent=[title for anchor, title in titles.items() if not _holds(content[anchor])],
        has_ceiling=at(split.metrics, "ceiling") is not None,
        content=content,
        baselines=[(BASELINES[name], text) for name, text in BASELINE_MEANINGS.items() if name in split.baselines()],
        params=_params_table(results.facts),
    )


def _measured(results: EvaluationResults) -> dict[str, Any]:
    """What the model can do, by section."""
    split = results.shown
    return {
        "headline": {
            "table": sections.headline_table(split),
            "retrieval": sections.retrieval_table(split),
            "studies": sections.studies_table(split),
            "others": sections.side_by_side_table([split, *(each for each in results.splits if each is not split)]),
        },
        "training": sections.learning_curves(results.live),
        "grades": {
            "confusion": sections.confusion_table(results.confusion, split.task, results.has_cases),
            "figures": sections.grade_table(split),
            "each": sections.each_grade_table(split),
        },
        "operating": sections.operating_table(split),
        "reviewers": {
            "flow": reviewers.flow_table(results),
            "detectable": reviewers.detectable_table(split),
            "readers": reviewers.readers_sentence(split),
            "slope": reviewers.slope_sentence(split),
            "grades": reviewers.grade_calibration(split),
            "curve": reviewers.decision_chart(split),
        },
        "confidence": {"charts": sections.calibration_charts(split), "table": sections.abstaining_table(split)},
        "gallery": cards(results, "gallery"),
        "mistakes": worst_mistakes(results),
    }


def _failures(results: EvaluationResults) -> dict[str, Any]:
    """What else was looked for, by section."""
    split = results.shown
    return {
        "findings": stress.findings_table(split),
        "grounding": {
            "table": stress.grounding_table(split),
            "verdict": stress.grounding_verdict(split),
            "maps": cards(results, "maps", MAP_SIDE),
        },
        "subgroups": {
            "charts": stress.subgroup_charts(split),
            "flagged": stress.flagged_groups(split),
            "suppressed": stress.suppressed_groups(split),
            "undetected": stress.undetected_gap(split),
        },
        "robustness": stress.robustness_table(split),
        "probes": {"table": stress.probe_table(split), "chart": stress.probe_chart(split)},
        "prompts": stress.prompts_table(split, results.facts.get("left_out_prompts", [])),
    }


def _holds(content: Any) -> bool:
    """Whether anything was measured."""
    return any(content.values()) if isinstance(content, dict) else bool(content)


def _fact_tables(facts: Mapping[str, Any]) -> list[Table]:
    """Data, preprocessed images and model, each as far as it is known. facts: as in facts.json."""
    data = {"manifest hash": facts["data_hash"]} if facts.get("data_hash") else {}
    model = {"code revision": facts.get("revision") or "unknown"}
    model |= {"file hash (SHA-256)": facts["model_sha256"]} if facts.get("model_sha256") else {}
    tables = [
        _table("Data", {**data, **_named(facts.get("counts", {}))}),
        _table("Preprocessed images", _named(facts.get("cache", {}))),
        _table("Model", {**model, **_named(facts.get("checkpoint", {}))}),
    ]
    return [table for table in tables if table.rows]


def _params_table(facts: Mapping[str, Any]) -> Table | None:
    """Every param of the model and its evaluation by its name in params.yaml."""
    rows = []
    for name, value in flatten(dict(facts.get("params", {}))).items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        rows.append([name, clip("none" if value is None else shown, VALUE_LENGTH)])
    return Table("As in params.yaml.", ["Param", "Value"], rows, words=2) if rows else None


def _table(caption: str, values: Mapping[str, Any]) -> Table:
    rows = [[name, number(value)] for name, value in values.items()]
    return Table(caption, ["", ""], rows, words=2)


def _named(nested: Mapping[str, Any]) -> dict[str, Any]:
    return {": ".join(readable(part.replace(".", "_")) for part in path): value for path, value in leaves(nested)}
