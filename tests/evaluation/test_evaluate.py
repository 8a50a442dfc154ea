"""The evaluation on files: a real checkpoint, manifest and pixel store."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.core.metrics_file import rounded
from knee_siglip.core.nesting import flatten
from knee_siglip.evaluation import evaluate as evaluate_module
from knee_siglip.evaluation.evaluate import embed, evaluate
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.inference.predictor import Predictor
from knee_siglip.model.checkpoint import load_checkpoint, save_checkpoint
from knee_siglip.model.training_facts import TrainingFacts
from knee_siglip.params.sections import Params
from knee_siglip.params.tasks import task_of
from knee_siglip.store.pixels import build_cache
from knee_siglip.tables.manifest import read_manifest, write_manifest


class RecordingTracker:
    def __init__(self) -> None:
        self.summary, self.artifacts = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def log_summary(self, values):
        self.summary |= flatten(values)

    def log_artifact(self, path, kind, folder=""):
        self.artifacts[path.name] = kind


def test_metrics_on_disk_are_what_is_returned_and_logged(files, params, monkeypatch):
    tracker = RecordingTracker()
    monkeypatch.setattr(evaluate_module, "attach_tracker", lambda params, **facts: tracker)
    returned = evaluate(params, files, device="cpu")
    written = json.loads((files.report / "metrics.json").read_text())
    assert flatten(written["test"]) == rounded(returned["test"])
    assert tracker.summary == flatten(returned)
    assert written["test"]["rows"] == 8
    assert written["test"]["graded_rows"] == 7
    assert tracker.artifacts["confusion.png"] == "report"
    assert {"metrics.json", "predictions.parquet", "embeddings.parquet", "retrieval.csv"} <= tracker.artifacts.keys()


def test_with_the_real_tracker_switched_off_two_runs_are_equal(files, params):
    assert evaluate(params, files, device="cpu") == evaluate(params, files, device="cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("auto", None), ("bf16", torch.bfloat16)])
def test_the_vision_tower_embeds_in_the_precision_of_the_params(files, precision, dtype):
    data = embed(Params.model_validate({"evaluate": {"precision": precision}}), files, device="cpu")
    assert data.checkpoint.vision_dtype is dtype
    assert data.splits["test"].image_embeds.dtype == np.float32


def test_evaluation_and_inference_grade_with_the_prompts_whose_words_the_training_texts_hold(files, params):
    words = ["normal", "left", "right", "knee", "joint"]
    facts = TrainingFacts(rows=9, drawn_rows=0, patients=4, verdict="learned", signs=[], words=words)
    checkpoint = replace(load_checkpoint(files.model), facts=facts)
    save_checkpoint(checkpoint, files.model)
    (test,) = embed(Params(), files, device="cpu").evaluated
    assert test.task.label_prompts[0] == ["Normal left knee joint.", "Normal right knee joint."]
    assert len(test.prompts.grades[0]) == 2
    evaluate(params, files, device="cpu")
    left_out = json.loads((files.report / "facts.json").read_text())["left_out_prompts"]
    assert "No significant bony abnormality of the left knee." in left_out
    assert not {"Normal left knee joint.", "Severe OA of medial compartment of left knee joint."} & set(left_out)
    predictor = Predictor(files.model, device="cpu", task=task_of(Params()))
    for asked, measured in zip(predictor.prompt_embeds, test.prompts.grades, strict=True):
        np.testing.assert_array_equal(asked, measured)


def test_every_split_has_its_rows_in_the_order_of_the_manifest(files):
    params = Params.model_validate({"evaluate": {"splits": ["test", "val"]}})
    test, val = embed(params, files, device="cpu").evaluated
    manifest = read_manifest(files.manifest)
    assert test.rows["image_id"].tolist() == manifest["image_id"][:8].tolist()
    assert val.rows["image_id"].tolist() == manifest["image_id"][8:].tolist()
    np.testing.assert_allclose(np.linalg.norm(val.image_embeds, axis=1), 1, atol=1e-5)


def test_equal_texts_have_equal_embeddings(files):
    (test,) = embed(Params(), files, device="cpu").evaluated
    assert test.texts[0] == test.texts[3]
    np.testing.assert_array_equal(test.text_embeds[0], test.text_embeds[3])


def test_images_of_other_splits_are_not_needed(files, tmp_path, monkeypatch, caplog):
    """Where the training images are gone, what is learnt from them is left out."""
    monkeypatch.setenv("KNEE_SIGLIP_STORE", str(tmp_path / "empty store"))
    for name in read_manifest(files.manifest)["image_file"][8:]:
        (tmp_path / name).unlink()
    data = embed(Params(), files, device="cpu")
    assert {name: len(split) for name, split in data.splits.items()} == {"test": 8}
    assert "whose images are missing" in caplog.text


def test_a_cache_of_another_size_is_refused(files, params, tmp_path):
    other = Transform(image_size=56, fit="pad", contrast="none")
    build_cache(read_manifest(files.manifest), other, tmp_path / "index.parquet", tmp_path / "cache.json")
    with pytest.raises(UserError, match=r"(?s)best_model\.pt .*28.*cache\.json .*56.*dvc repro train"):
        evaluate(params, replace(files, cache_facts=tmp_path / "cache.json"), device="cpu")
    assert not files.report.exists()


def test_a_missing_column_is_named_before_anything_is_embedded(files, monkeypatch):
    monkeypatch.setattr(evaluate_module, "embed_split", None)
    with pytest.raises(UserError, match=r"evaluate\.subgroups names scanner, but the CSV has no such column"):
        embed(Params.model_validate({"evaluate": {"subgroups": ["side", "scanner"]}}), files, device="cpu")
    known_by_column = {"cyst": {"positive": ["a cyst"], "negative": ["none"], "column": "cyst"}}
    with pytest.raises(UserError, match=r"task\.findings\.cyst\.column = 'cyst': the manifest has no such column"):
        embed(Params.model_validate({"evaluate": {"findings": known_by_column}}), files, device="cpu")


def test_an_empty_split_is_named(files):
    with pytest.raises(UserError, match=r"evaluate\.splits names train"):
        embed(Params.model_validate({"evaluate": {"splits": ["train"]}}), files, device="cpu")


def test_a_diverged_model_is_refused(files):
    content = torch.load(files.model, weights_only=True)
    content["weights"]["visual_projection.weight"].fill_(float("nan"))
    torch.save(content, files.model)
    with pytest.raises(UserError, match="not finite"):
        embed(Params(), files, device="cpu")


def test_a_manifest_with_neither_patients_nor_grades_is_evaluated(files, params):
    manifest = read_manifest(files.manifest).drop(columns=["patient_id", "kl_grade"])
    write_manifest(manifest, files.manifest)
    metrics = evaluate(params, files, device="cpu")["test"]
    assert metrics["patients"] == 0
    assert metrics["images_of_unknown_patients"] == metrics["rows"]
    assert not any(name.startswith("zero_shot_kl") for name in metrics)
    assert "patient_id" not in pd.read_parquet(files.report / "predictions.parquet")


def test_a_second_test_set_is_measured_beside_the_first(files, params):
    alone = evaluate(params, files, device="cpu")
    rows = read_manifest(files.manifest)
    external = rows[rows["split"] == "val"].assign(split="external", hospital="B")
    write_manifest(external, files.external)
    both = evaluate(params, files, device="cpu")
    assert (list(both), both["external"]["rows"]) == (["test", "external"], 4)
    assert both["test"] == alone["test"]
    written = json.loads((files.report / "metrics.json").read_text())
    assert flatten(written["external"]) == rounded(both["external"])
    assert set(pd.read_parquet(files.report / "predictions.parquet")["split"]) == {"test", "external"}
