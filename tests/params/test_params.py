import os
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.core.nesting import flatten, nest
from knee_siglip.params.checks import check_inputs
from knee_siglip.params.files import check_stated, load_params, parse_params
from knee_siglip.params.sections import Params, TaskParams
from knee_siglip.params.tasks import saved_task, task_of

ROOT = Path(__file__).parents[2]


def test_shipped_file_states_every_default():
    params = load_params(ROOT / "params.yaml")
    none = {"data": {"external": "data/no_external.csv"}}  # for DVC, which cannot depend on null
    assert params == parse_params(none)
    assert params.flat().keys() == parse_params({}).flat().keys()


def test_rad_dino_preset_has_the_references_batch_and_schedule_and_asks_for_revisions():
    params = load_params(ROOT / "presets" / "rad-dino.yaml")
    assert (params.model.vision, params.model.vision_revision) == ("microsoft/rad-dino", "")
    assert (params.model.text, params.model.text_revision) == ("google/siglip-base-patch16-224", "")
    assert (params.image_size, params.model.max_text_length, params.model.temperature) == (224, "auto", 0.07)
    train = params.train
    assert (train.batch_size, train.epochs, train.learning_rate) == (64, 20, 1e-4)
    assert (train.weight_decay, train.warmup_ratio, train.gradient_accumulation_steps) == (0.01, 0.05, 1)
    assert params.flat().keys() == Params().flat().keys()


HIP = {"subject": "hip", "label_column": "hip_grade", "labels": {1: "mild", 2: "severe"}, "queries": ["Normal hip."]}
PROMPTS = {"1": ["Mild OA of the hip."], "2": ["Severe OA of the hip."]}


def test_another_task_takes_nothing_from_the_knee():
    params = parse_params({"task": HIP, "evaluate": {"label_prompts": PROMPTS}})
    task = task_of(params)
    assert (task.labels.column, task.labels.values, task.label_words) == ("hip_grade", ("1", "2"), ("mild", "severe"))
    assert (task.findings, task.positive, task.side_words, task.label_patterns) == ({}, None, None, {})
    assert (task.label_prompts, task.normal) == (tuple(PROMPTS.values()), "Normal hip.")
    assert params.evaluate.subgroup_columns(task.labels.column) == ["side", "view", "hip_grade"]
    assert "knee" not in str({"task": params.to_dict()["task"], "evaluate": params.to_dict()["evaluate"]}).lower()


def test_a_task_of_a_checkpoint_is_that_of_its_params():
    saved = parse_params({"task": HIP, "evaluate": {"label_prompts": PROMPTS}})
    assert saved_task(saved.to_dict()) == task_of(saved)


def test_checkpoints_from_before_there_were_tasks_are_about_the_knee():
    saved = {
        "evaluate": {"kl_prompts": {str(grade): [f"grade {grade}"] for grade in range(5)}, "of_a_later_version": 1}
    }
    task = saved_task(saved)
    assert task == replace(task_of(Params()), label_prompts=tuple([f"grade {grade}"] for grade in range(5)))


def test_a_checkpoint_with_prompts_for_another_grade_describes_no_task():
    with pytest.raises(UserError, match="label 5 is in only one of"):
        saved_task({"evaluate": {"kl_prompts": {"0": ["none"], "5": ["beyond"]}}})
    with pytest.raises(UserError, match="describe no task: labels"):
        saved_task({"task": {"labels": 3}})
    with pytest.raises(UserError, match="describe no task"):
        saved_task({"evaluate": 7})


FINDING = {"positive": ["x"], "negative": ["y"]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"image_size": 225}, r"image_size = 225: must be a multiple .* patch size 28; nearest: 224 or 252"),
        ({"image_size": 448, "model": {"vision": "microsoft/rad-dino"}, "seed": -1}, r"seed = -1: .*greater than"),
        ({"image_size": 450, "model": {"vision": "microsoft/rad-dino"}}, "patch size 14; nearest: 448 or 462"),
        ({"train": {"learning_rate": "abc"}}, "train.learning_rate = 'abc': Input should be a valid number"),
        ({"train": {"learning_rat": 1.0}}, "train.learning_rat: unknown key; did you mean train.learning_rate?"),
        ({"learning_rate": 1.0}, "learning_rate: unknown key; did you mean train.learning_rate?"),
        ({"train": {"epochs": True}}, "train.epochs = True"),
        ({"train": {"epochs": 3, "steps": 70}}, "train: steps = 70 and epochs = 3: give one"),
        ({"train": {"steps": "all"}}, "train.steps = 'all'"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate = nan"),
        ({"train": {"mixed_precision": "fp8"}}, "train.mixed_precision = 'fp8': Input should be 'auto', 'bf16'"),
        ({"model": {"bias_init": "x"}}, "model.bias_init = 'x'"),
        ({"train": None}, "train = None"),
        ({"task": {"label_prompts": {0: ["a"]}}}, "task.label_prompts: no prompts for 1, 2, 3, 4"),
        ({"task": {"labels": {"0": "a", "1": "b"}, "label_patterns": {}, "positive": None}}, "no prompts for 0, 1;"),
        ({"evaluate": {"label_prompts": {n: ["a"] for n in range(6)}}}, "prompts for 5, but task.labels are 0, 1"),
        ({"task": {"subject": "hip"}}, "task.queries: none"),
        (
            {"task": {"subject": "hip"}, "evaluate": {"kl_prompts": {"0": ["a"]}}},
            r"(?s)prompts for 0, but task.labels are none.*queries: none.*task.subject = 'hip': nothing of the knee",
        ),
        ({"evaluate": None}, r"evaluate = None: must be a section \(key: value\); leave"),
        ({"evaluate": {"kl_prompts": {0: ["a"], "0": ["b"]}}}, "has both 0 and '0', which are one label"),
        ({"data": {"csv": ""}}, "data.csv = '': must not be empty"),
        ({"infer": {"csv_path": " "}}, "infer.csv_path = ' ': must not be empty"),
        ({"infer": {"queries": [""]}}, "infer.queries.0 = '': must not be empty"),
        ({"model": {"bias_init": float("nan")}}, "model.bias_init = nan"),
        ({"model": {"temperature": 1e-320}}, "model.temperature = 1e-320: Input should be greater"),
        ({"evaluate": {"findings": {"x": FINDING | {"text": "("}}}}, r"text = '\(' is no regular expression"),
        ({"evaluate": {"findings": {"x": FINDING | {"text": "(a|aa)+$"}}}}, r"text = .* takes more than 1 s"),
        ({"data": {"patient_id_pattern": "(a|aa)+$"}}, "patient_id_pattern = .* takes more than 1 s"),
        ({"task": HIP | {"labels": {"1": "a"}}}, "labels has a single one"),
        ({"task": HIP | {"positive": {"name": "x", "title": "x", "lowest": 1}}}, "positive.lowest = '1': must be one"),
        ({"task": HIP | {"label_patterns": "kellgren-lawrence"}}, "needs the labels 0, 1, 2, 3, 4"),
        ({"task": HIP | {"label_patterns": {"9": "x"}}}, "label_patterns has '9', which is none of labels"),
        ({"task": HIP | {"side_words": "("}}, r"side_words = '\(' is no regular expression"),
        ([1], "must hold sections"),
    ],
)
def test_a_mistake_names_the_key_the_value_and_what_is_allowed(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_params(values)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UsageError) as error:
        parse_params({"seed": "x", "train": {"epochs": 0}})
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(("written", "value"), [("1e-05", 1e-5), ("1e-5", 1e-5), ("2", 2.0), ("1.0e-4", 1e-4)])
def test_numbers_are_read_by_yaml_1_2_as_dvc_writes_them(tmp_path, written, value):
    path = tmp_path / "params.yaml"
    path.write_text(f"train:\n  learning_rate: {written}\n")
    assert load_params(path).train.learning_rate == value


@pytest.mark.parametrize(("flag", "value"), [("true", "auto"), ("false", "none"), ("bf16", "bf16")])
def test_the_references_mixed_precision_flag_is_accepted(tmp_path, flag, value):
    path = tmp_path / "params.yaml"
    path.write_text(f"train:\n  mixed_precision: {flag}\n")
    assert load_params(path).train.mixed_precision == value


ALIASES = "x: &x0 [y]\n" + "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 10))
ALIASES += "image_size: *x9\n"
"""A list of nine lists of nine lists ..."""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist"),
        ("a: [", "not valid YAML"),
        ("\xff", "valid YAML"),
        ("[" * 10_000, "not valid YAML"),
        (ALIASES, "image_size = "),
    ],
    ids=["none", "open", "bytes", "deep", "aliases"],
)
def test_an_unreadable_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=sentence):
        load_params(path)


def test_a_params_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "params.yaml")
    with pytest.raises(UsageError, match="is no file; name a YAML file"):
        load_params(tmp_path / "params.yaml")


def test_params_cannot_be_changed_after_the_check():
    with pytest.raises(ValueError, match="frozen"):
        Params().train.epochs = 3


def test_dotted_names_become_sections_and_back():
    nested = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}
    assert nest({"a": 1, "b.c": 2, "b.d.e": 3}) == nested
    assert nest(flatten(nested)) == nested


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"data": {"csv": "nope.csv"}}, "data.csv = 'nope.csv': does not exist"),
        ({"data": {"images": "nope"}}, "data.images = 'nope': does not exist"),
        ({"model": {"vision": "microsoft/rad-dino"}}, "model.vision_revision = '': .*40-digit hash"),
        ({"model": {"text": "google/siglip-base-patch16-224", "text_revision": "main"}}, "text_revision = 'main'"),
        ({"model": {"vision": "rad dino"}}, "model.vision = 'rad dino': is no folder"),
        (
            {"train": {"init_from": "models/best_model.pt"}},
            "train.init_from = .*: training replaces this file; copy it",
        ),
        ({"infer": {"csv_path": "nope.csv"}}, "infer.csv_path = 'nope.csv': does not exist"),
        ({"infer": {"images": "nope"}}, "infer.images = 'nope': does not exist"),
        ({"train": {"init_from": "start/224.pt"}}, "train.init_from = 'start/224.pt': does not exist"),
    ],
)
def test_what_the_params_name_is_looked_for_before_any_work(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        check_inputs(parse_params(values))


def test_the_sample_may_be_named_before_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_inputs(Params())


def test_columns_that_evaluation_names_are_looked_for_before_training(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("img_path,impression,split\n")
    data = {"csv": str(path), "images": str(tmp_path)}
    check_inputs(parse_params({"data": data}))
    with pytest.raises(
        UsageError, match=r"evaluate\.subgroups names clinic, but .*train\.csv has no such column; it has"
    ):
        check_inputs(parse_params({"data": data, "evaluate": {"subgroups": ["side", "clinic"]}}))
    findings = {"x": FINDING | {"column": "boxes"}}
    with pytest.raises(UsageError, match=r"task\.findings\.x\.column names boxes"):
        check_inputs(parse_params({"data": data, "evaluate": {"findings": findings}}))


def test_wrong_yaml_is_located_once(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("train:\n  epochs: [1\nseed: 0\n")
    with pytest.raises(UsageError, match="not valid YAML in line 3, column 5") as error:
        load_params(path)
    assert len(str(error.value).splitlines()) == 1


def test_what_dvc_reads_itself_must_stand_in_the_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("data:\n  csv: train.csv\n  external: data/no_external.csv\n")
    with pytest.raises(UsageError, match=r"data\.images is missing; dvc\.yaml uses it"):
        check_stated(path)
    check_stated(ROOT / "params.yaml")
    check_stated(ROOT / "presets" / "rad-dino.yaml")


def test_dvc_can_set_the_prompts_of_one_grade(tmp_path):
    """Its `-S` finds text keys only: `0:` unquoted is a number."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    apply_overrides(path, ["+evaluate.label_prompts.0=[Healthy knee.]", f"task={ROOT}/tasks/knee.yaml"])
    shipped, changed = task_of(Params()), task_of(load_params(path))
    assert changed == replace(shipped, label_prompts=(["Healthy knee."], *shipped.label_prompts[1:]))


@pytest.mark.parametrize(
    ("name", "column", "count"), [("knee", "kl_grade", 5), ("hip", "hip_grade", 5), ("chest", "grade", 0)]
)
def test_shipped_tasks_state_every_key(name, column, count):
    path = ROOT / "tasks" / f"{name}.yaml"
    stated = YAML(typ="safe").load(path.read_text())
    task = task_of(parse_params({"task": str(path)}))
    assert stated.keys() == TaskParams.model_fields.keys()
    assert (task.subject, task.labels.column, len(task.labels)) == (name, column, count)
    assert all(finding.text and not finding.column for finding in task.findings.values())


def test_a_task_is_found_from_below_the_project_and_a_missing_one_is_told(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "params.yaml").write_text("task: tasks/hand.yaml\n")
    with pytest.raises(UsageError, match=r"task = 'tasks/hand.yaml': is no file; name one such as"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "tasks/hand.yaml").write_text("subject: hand\nqueries: [Normal hand.]\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert load_params(tmp_path / "params.yaml").task.subject == "hand"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n", "must hold the keys of a task"),
        ("labels: {}\n", "hand.yaml: subject is missing"),
        ("subject: hand\nsubjet: x\n", "hand.yaml: subjet: unknown key; did you mean task.subject"),
        ("subject: hand\nside_words: 3\n", "hand.yaml: side_words = 3"),
        ("subject: hand\n", "params, .*hand.yaml: task.queries: none"),
    ],
)
def test_a_mistake_in_a_task_names_its_file(tmp_path, text, sentence):
    (tmp_path / "hand.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        parse_params({"task": str(tmp_path / "hand.yaml")})


def test_another_task_needs_data_of_its_own():
    with pytest.raises(UsageError, match=r"data.csv = .*: the sample shows knees, but task.subject is 'chest'"):
        check_inputs(parse_params({"task": str(ROOT / "tasks/chest.yaml")}))
