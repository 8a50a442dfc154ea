"""What a finished training adds to its checkpoints."""

import json

import numpy as np

from knee_siglip.metrics.calibration import fit_temperature
from knee_siglip.metrics.grading import label_scores
from knee_siglip.model.checkpoint import load_checkpoint
from knee_siglip.model.embedding import embed_texts, ensemble
from knee_siglip.params.tasks import task_of
from knee_siglip.tables.manifest import read_manifest, write_manifest
from knee_siglip.training.monitoring import facts
from knee_siglip.training.monitoring.facts import fitted_temperature
from knee_siglip.training.run import train


def test_a_training_leaves_its_facts_in_both_models_and_changes_no_weight(files, make_params, monkeypatch):
    monkeypatch.setattr(facts, "LEAST", 10)
    manifest = read_manifest(files.manifest)
    manifest["kl_grade"] = manifest["text"].map(
        {"normal knee": 0, "mild knee": 2, "moderate knee": 3, "severe knee": 4}
    )
    manifest["text_alternatives"] = ["{}" if number < 20 else "" for number in range(len(manifest))]
    manifest.loc[3, "text"] = "severe knee of somebody"  # a single text: may be a name
    write_manifest(manifest, files.manifest)
    params = make_params()
    train(params, files, "cpu")
    verdict = json.loads((files.report / "verdict.json").read_text())
    for path in (files.best_model, files.final_model):
        model = load_checkpoint(path)
        found = model.facts
        assert (found.rows, found.drawn_rows, found.patients, found.calibrated_on) == (28, 20, 14, 12)
        assert (found.verdict, found.signs) == (verdict["verdict"], [sign["name"] for sign in verdict["signs"]])
        assert found.temperature > 0
        assert found.words == ["knee", "mild", "moderate", "normal", "severe"]
        assert model.likeness.limit > 0
    unchanged = files.best_model.read_bytes()
    train(params, files, "cpu")
    assert files.best_model.read_bytes() == unchanged


def test_the_temperature_is_fitted_on_the_graded_images(files, make_params, monkeypatch):
    monkeypatch.setattr(facts, "LEAST", 3)
    params = make_params(epochs=1)
    train(params, files, "cpu")
    model, task = load_checkpoint(files.best_model), task_of(params)
    rows = read_manifest(files.manifest).iloc[:4].assign(kl_grade=["0", "3", "", "4"])
    prompts = [embed_texts(model, texts) for texts in task.label_prompts]
    embeds = np.stack([ensemble(prompts[grade]) for grade in (0, 3, 1, 2)])  # the last one is graded wrongly
    temperature, graded = fitted_temperature(model, task, rows, embeds)
    scale = model.model.logit_scale.exp().item()
    logits = scale * label_scores(embeds[[0, 1, 3]], prompts, scale)
    assert (temperature, graded) == (fit_temperature(logits, np.array([0, 3, 4])), 3)


def test_without_enough_grades_there_is_no_temperature(files, make_params):
    params = make_params(epochs=1)
    train(params, files, "cpu")
    rows, model = read_manifest(files.manifest).iloc[:5], load_checkpoint(files.best_model)
    embeds = np.zeros((5, model.model.text.width), dtype="f4")
    assert fitted_temperature(model, task_of(params), rows, embeds) == (None, 0)
    assert fitted_temperature(model, task_of(params), rows.assign(kl_grade="3"), embeds) == (None, 5)
