"""A training from files to files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from knee_siglip.core import paths
from knee_siglip.core.errors import UserError
from knee_siglip.core.nesting import flatten
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from knee_siglip.tables.manifest import read_manifest, write_manifest
from knee_siglip.tables.text import load_tokenizer, normalise_text
from knee_siglip.training import run, schedule
from knee_siglip.training.resume import StateSaver
from knee_siglip.training.run import train
from knee_siglip.training.trainer import Trainer
from toys import POSITIONS

SIZE = 28


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def report(files, name="metrics.json"):
    return flatten(json.loads((files.report / name).read_text()))


def test_all_files_are_written_and_nothing_is_left_to_go_on_from(files, make_params):
    train(make_params(), files, "cpu")
    figures, speed = report(files), report(files, "speed.json")
    assert {"train.loss", "val.loss", "val.contrastive_accuracy", "best.val_loss", "parameters.total"} <= figures.keys()
    assert (figures["epochs_done"], figures["train.skipped_steps"]) == (2, 0)
    assert {"pairs_per_second", "data_wait_share", "model_tflops_per_second", "peak_memory_mb"} <= speed.keys()
    best = load_checkpoint(files.best_model)
    assert best.metrics["epoch"] == figures["best_epoch"]
    assert load_checkpoint(files.final_model).metrics["epoch"] == 2
    assert list((paths.store_root() / paths.RUNS).iterdir()) == []


def test_a_length_in_steps_is_reported_in_steps_and_epochs_with_a_verdict(files, make_params):
    """28 pairs in batches of 8 are four steps an epoch."""
    train(make_params(epochs=None, steps=10), files, "cpu")
    figures, verdict = report(files), json.loads((files.report / "verdict.json").read_text())
    assert (figures["steps_done"], figures["epochs_done"]) == (10, 2.5)
    assert figures["best_step"] == 4 * figures["best_epoch"]
    assert (verdict["steps"], verdict["train_rows"]) == (10, 28)
    assert "few_rows" in {sign["name"] for sign in verdict["signs"]}


def test_steps_that_are_chosen_are_said_and_kept_with_the_model(files, make_params, caplog, monkeypatch):
    monkeypatch.setattr(schedule, "LEAST_STEPS", 5)
    monkeypatch.setattr(schedule, "SMALL_STEPS", 10)
    monkeypatch.setattr(schedule, "DRAWN_STEPS", 4)
    monkeypatch.setattr(schedule, "LEAST_EPOCHS", 1)
    train(make_params(epochs=None), files, "cpu")
    assert "train.steps = auto: 10 steps (2.5 epochs) for 28 training rows\n" in caplog.text
    assert load_checkpoint(files.best_model).params["train"]["steps"] == 10
    manifest = read_manifest(files.manifest)
    manifest["text_alternatives"] = "{}"
    write_manifest(manifest, files.manifest)
    train(make_params(epochs=None), files, "cpu")
    assert "4 steps (1 epochs) for 28 training rows, 28 of them drawn by a program" in caplog.text


def test_two_runs_are_equal_to_the_bit(files, make_params):
    found = []
    for _ in range(2):
        train(make_params(), files, "cpu")
        found.append((weights(files.final_model), report(files)))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


@pytest.mark.parametrize(("ending", "freeze"), [("pixels", "none"), ("features", "all")])
def test_flipped_bits_in_the_store_train_nothing(files, make_params, ending, freeze, caplog):
    params = make_params(epochs=1, freeze={"vision": freeze})
    train(params, files, "cpu")
    undisturbed, loss = weights(files.best_model), report(files)["train.loss"]
    for file in paths.store_root().rglob(f"*.{ending}"):
        data = np.fromfile(file, dtype=np.uint8)
        data[3::500] ^= 64
        data.tofile(file)
    train(params, files, "cpu")
    assert "damaged images are made again" in caplog.text
    assert report(files)["train.loss"] == pytest.approx(loss, rel=1e-3)
    if ending == "pixels":  # features of other batches differ in the last bits
        assert all(torch.equal(value, undisturbed[name]) for name, value in weights(files.best_model).items())


def test_a_training_killed_before_its_first_state_says_that_it_starts_again(files, make_params, monkeypatch, caplog):
    def end(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", end)
        with pytest.raises(KeyboardInterrupt):
            train(make_params(epochs=1), files, "cpu")
    assert "interrupted" not in caplog.text
    train(make_params(epochs=1), files, "cpu")
    assert "interrupted, and no saved state can be used: it starts again from the beginning" in caplog.text


@pytest.mark.parametrize(
    ("killed_in", "patience"),
    [((run, "_report"), None), ((StateSaver, "remove"), 1)],
    ids=["all-rounds-before-its-report", "stopped-early-after-its-end"],
)
def test_a_training_killed_after_its_last_step_leaves_what_an_undisturbed_one_does(
    files, make_params, monkeypatch, dvclive, killed_in, patience
):
    def left():
        found = [files.final_model, *(files.report / "live").rglob("*.tsv")]
        return {path: path.read_bytes() for path in found}

    def stop(*_):
        raise KeyboardInterrupt

    params = make_params(epochs=3, save_every_steps=1, patience=patience)
    train(params, files, "cpu")
    undisturbed = left()
    shutil.rmtree(files.report)
    files.final_model.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(*killed_in, stop)
        with pytest.raises(KeyboardInterrupt):
            train(params, files, "cpu")
    shutil.rmtree(files.report)
    files.final_model.unlink()
    train(params, files, "cpu")
    assert left() == undisturbed


def test_a_state_of_another_version_is_refused_and_changes_nothing(files, make_params, monkeypatch, caplog):
    """Its weights fit and are loaded before its optimizer does not."""
    params = make_params(epochs=1, save_every_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(StateSaver, "remove", lambda saver: None)
        train(params, files, "cpu")
    expected = weights(files.final_model), report(files)
    (folder,) = (paths.store_root() / paths.RUNS).iterdir()
    saver = StateSaver(folder, minutes=5)
    for state in list(saver.undamaged()):
        saver.save(state | {"optimizer": {"state": {}, "param_groups": []}}, state["step"], wait=True)
    train(params, files, "cpu")
    assert caplog.text.count("does not fit this version") == 2
    assert "starts again from the beginning" in caplog.text
    assert report(files) == expected[1]
    assert all(torch.equal(weights(files.final_model)[name], weight) for name, weight in expected[0].items())


def test_micro_batches_change_the_last_digits_at_most(files, make_params):
    found = []
    for size in ("auto", 3):
        train(make_params(micro_batch_size=size), files, "cpu")
        found.append((weights(files.final_model), report(files)))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    for name in found[0][0]:
        # Adam makes steps of full size of a gradient that is nothing but rounding
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(found[0][0][name], found[1][0][name], rtol=1e-3, atol=1e-4)


def test_the_average_of_the_weights_is_kept_where_it_is_what_counts(files, make_params):
    train(make_params(ema_decay=0.9), files, "cpu")
    raw, figures = weights(files.final_model), report(files)
    assert {"val_ema.loss", "val_ema.contrastive_accuracy", "best.val_ema_loss"} <= figures.keys()
    train(make_params(ema_decay=0.9, best_metric="val_ema.loss"), files, "cpu")
    averaged = weights(files.final_model)
    assert not torch.equal(raw["visual_projection.weight"], averaged["visual_projection.weight"])
    model = load_checkpoint(files.final_model)
    assert model.metrics["val_ema.loss"] == pytest.approx(figures["val_ema.loss"], rel=1e-3)


def test_features_of_a_frozen_tower_are_computed_once_and_give_what_the_tower_gives(files, make_params, caplog):
    still = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast", "gamma", "noise", "mirror"), 0.0)
    found = []
    for cached in (False, True):
        train(make_params(freeze={"vision": "all"}, augment=still, cache_frozen_features=cached), files, "cpu")
        found.append(report(files))
    assert found[0]["train.loss"] == pytest.approx(found[1]["train.loss"], rel=1e-4)
    assert found[0]["val.loss"] == pytest.approx(found[1]["val.loss"], rel=1e-4)
    (folder,) = (paths.store_root() / paths.FEATURES).iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.features")}
    assert "train.augment" not in caplog.text
    train(make_params(seed=1, freeze={"vision": "all"}), files, "cpu")
    assert {file.name: file.stat().st_mtime_ns for file in folder.glob("*.features")} == before
    assert "train.augment changes no image" in caplog.text


def test_damaged_features_are_made_again_with_the_same_bits(files, make_params, caplog):
    params = make_params(freeze={"vision": "all"})
    train(params, files, "cpu")
    (folder,) = (paths.store_root() / paths.FEATURES).iterdir()
    (stored,), before = folder.glob("*.features"), logged_rows(folder)
    data = bytearray(stored.read_bytes())
    data[5] ^= 1
    stored.write_bytes(data)
    train(params, files, "cpu")
    assert "1 damaged images are made again" in caplog.text
    assert logged_rows(folder) == before


def logged_rows(folder: Path) -> set[tuple[str, str]]:
    """Ids and hashes of the rows, but for the disowned one."""
    lines = [line.split(" ") for log in folder.glob("*.ids") for line in log.read_text().splitlines()]
    return {(image_id, row_hash) for _, image_id, row_hash, _ in lines if image_id.strip("0")}


def test_cached_features_keep_the_studies_positives(files, make_params):
    """A study's other text is a positive, whether the frozen tower's features are cached or computed at each step."""
    still = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast", "gamma", "noise", "mirror"), 0.0)
    manifest = read_manifest(files.manifest)
    losses = {}
    for name, studies in {"none": {}, "all": {"study_id": manifest["split"]}}.items():
        write_manifest(manifest.assign(**studies), files.manifest)
        for cached in (False, True):
            train(make_params(freeze={"vision": "all"}, augment=still, cache_frozen_features=cached), files, "cpu")
            losses[name, cached] = report(files)["val.loss"]
    assert losses["all", True] == pytest.approx(losses["all", False], rel=1e-4)
    assert losses["none", True] == pytest.approx(losses["none", False], rel=1e-4)
    assert losses["all", True] != pytest.approx(losses["none", True], rel=1e-2)


@pytest.mark.parametrize(
    ("train_params", "side_words", "is_mirrored"),
    [({}, "knee", True), ({}, None, False), ({"freeze": {"vision": "all"}}, "knee", False)],
    ids=["images with sides", "images without", "cached features"],
)
def test_images_are_mirrored_where_they_have_a_side(files, make_params, train_params, side_words, is_mirrored):
    still = dict.fromkeys(("rotation", "shift", "scale", "brightness", "contrast", "gamma", "noise"), 0.0)
    losses = []
    for mirror in (0.0, 1.0):
        params = make_params(augment=still | {"mirror": mirror}, **train_params)
        task = params.task.model_copy(update={"side_words": side_words})
        train(params.model_copy(update={"task": task}), files, "cpu")
        losses.append(report(files)["train.loss"])
    assert (losses[0] != losses[1]) is is_mirrored


def test_sentences_that_change_are_another_training_and_texts_of_one_sentence_stay(files, make_params, caplog):
    manifest = read_manifest(files.manifest)
    several = manifest["text"] + ". Some sclerosis. Subchondral cysts."
    found = {}
    write_manifest(manifest.assign(impression=several, text=several.map(normalise_text)), files.manifest)
    for name in (None, "sentence_shuffle", "sentence_drop"):
        train(make_params(augment={name: 0.5} if name else {}), files, "cpu")
        found[name] = report(files)["train.loss"]
    assert len(set(found.values())) == 3
    assert "no training text has sentences" not in caplog.text
    write_manifest(manifest.assign(impression=manifest["text"]), files.manifest)
    train(make_params(augment={}), files, "cpu")
    plain = report(files)["train.loss"]
    train(make_params(augment={"sentence_drop": 0.5}), files, "cpu")
    assert report(files)["train.loss"] == plain
    assert "no training text has sentences" in caplog.text


def test_a_partly_frozen_tower_trains_its_last_blocks_only(files, make_params):
    train(make_params(freeze={"vision": 1, "text": "all"}), files, "cpu")
    before = load_state(files.backbones / "vision")
    after = {n.removeprefix("vision_model."): w for n, w in weights(files.best_model).items() if "vision_model" in n}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("encoder.layer.3.", "layernorm.")) for name in changed)


def test_adapters_are_merged_into_checkpoints_and_train_nothing_else_of_their_tower(files, make_params):
    train(make_params(freeze={"vision": "lora"}, lora={"rank": 4}, ema_decay=0.9), files, "cpu")
    before = load_state(files.backbones / "vision")
    after = {n.removeprefix("vision_model."): w for n, w in weights(files.best_model).items() if "vision_model" in n}
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
    assert {name.split(".")[-2] for name in changed} == set(linear)
    assert all(name.endswith(".weight") for name in changed)
    counts = load_checkpoint(files.best_model).model.parameter_counts()
    assert 0 < report(files)["parameters.trainable"] < counts["total"] - counts["vision"] + counts["vision"] // 2
    assert not (paths.store_root() / paths.FEATURES).exists()


def test_texts_are_cut_where_the_training_texts_need_it(files, make_params, caplog):
    manifest = pd.read_parquet(files.manifest)
    params = make_params()
    params = params.model_copy(update={"model": params.model.model_copy(update={"max_text_length": "auto"})})
    with pytest.raises(UserError, match="no token counts"):
        train(params, files, "cpu")
    # test rows are not looked at
    write_manifest(manifest.assign(text_tokens=[70] * 28 + [300] * 12), files.manifest)
    train(params, files, "cpu")
    assert "72 tokens; 0 of 28 training texts are cut" in caplog.text
    model = load_checkpoint(files.best_model)
    assert (model.max_text_length, model.position_count, report(files)["dataset.max_text_length"]) == (72, 72, 72)


def test_a_second_run_starts_from_the_firsts_weights(files, make_params, tmp_path):
    train(make_params(), files, "cpu")
    first = shutil.copyfile(files.best_model, tmp_path / "first.pt")
    train(make_params(init_from=str(first), epochs=1, learning_rate=1e-12), files, "cpu")
    for name, weight in weights(first).items():
        torch.testing.assert_close(weights(files.best_model)[name], weight, rtol=0, atol=1e-6)


def test_weights_of_other_encoders_are_refused_with_the_name_of_one(files, make_params, make_model, tmp_path):
    tokenizer = load_tokenizer(files.backbones / "text")
    params = make_params(init_from=str(tmp_path / "other.pt"))
    saved = params.to_dict() | {"model": {"max_text_length": POSITIONS}}
    other = Checkpoint(make_model(vocabulary=len(tokenizer)), tokenizer, Transform(SIZE, "pad", "none"), saved)
    save_checkpoint(other, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"train\.init_from = .*other\.pt: is a model of other encoders.*: text_model.* others differ"
    ):
        train(params, files, "cpu")


def load_state(folder):
    from knee_siglip.encoders.backbones import load_vision

    return load_vision(folder).model.state_dict()


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_named(files, make_params, split):
    manifest = read_manifest(files.manifest)
    write_manifest(manifest[manifest["split"] != split], files.manifest)
    with pytest.raises(UserError, match=f"the {split} split has 0 rows"):
        train(make_params(), files, "cpu")


def test_training_that_diverges_names_the_images_and_ends(files, make_params):
    params = make_params(learning_rate=100.0, max_grad_norm=None, max_skipped_steps=1, epochs=20)
    with pytest.raises(UserError, match=r"not_finite\.json names the images.*lower train\.learning_rate"):
        train(params, files, "cpu")
    dump = json.loads((files.report / "not_finite.json").read_text())
    assert len(dump["skipped"]) == 2
    named = dump["skipped"][0]["images"][0]
    row = read_manifest(files.manifest).iloc[named["row"]]
    assert (named["img_path"], named["image_id"], named["text"]) == (row["img_path"], row["image_id"], row["text"])
    assert len(dump["skipped"][0]["images"]) in (4, 8)


def test_a_manifest_of_another_order_is_another_training(files, make_params):
    """The fingerprint covers the data: what was saved for one set is not taken for another."""
    from knee_siglip.store.pixels import open_pixels
    from knee_siglip.training.run import data_hash

    manifest = read_manifest(files.manifest)
    pixels = open_pixels(manifest, files.cache_facts)
    other = pd.concat([manifest.iloc[1:], manifest.iloc[:1]], ignore_index=True)
    assert data_hash(manifest, pixels) != data_hash(other, pixels)


def test_another_text_of_the_study_is_a_positive(files, make_params):
    """A study of several texts is another training, and each of its texts is right. Studies of one change nothing."""
    found = []
    manifest = read_manifest(files.manifest)
    for studies in ({}, {"study_id": manifest["image_id"]}, {"study_id": manifest["split"]}):
        write_manifest(manifest.assign(**studies), files.manifest)
        train(make_params(epochs=1), files, "cpu")
        found.append((load_checkpoint(files.final_model), report(files)["val.contrastive_accuracy"]))
    (without, alone), (single, of_one), (several, of_all) = found
    assert all(torch.equal(w, single.model.state_dict()[name]) for name, w in without.model.state_dict().items())
    assert without.data_hash == single.data_hash != several.data_hash
    assert alone == of_one < of_all == 1
