"""The `knee-siglip` command: usage, exit codes, and a real checkpoint alone in a folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from knee_siglip import __version__
from knee_siglip.cli import doctor
from knee_siglip.cli import train as pipeline
from knee_siglip.params.sections import Params
from knee_siglip.serve.model import load
from knee_siglip.task.knee import USUAL_QUERIES

COMMAND = [sys.executable, "-c", "from knee_siglip.cli.main import main; main()"]

MAPPED = ("--model_path", "m.pt", "--image_path", "a.png", "--phrase", "effusion")


@pytest.fixture
def knee_png(tmp_path: Path) -> Path:
    path = tmp_path / "knee.png"
    Image.linear_gradient("L").save(path)
    return path


def test_image_is_ranked_by_the_checkpoint_alone(checkpoint_path: Path, knee_png: Path) -> None:
    command = [*COMMAND, "infer", "--model_path", checkpoint_path.name, "--image_path", str(knee_png), "--json"]
    done = subprocess.run(
        command, cwd=checkpoint_path.parent, capture_output=True, text=True, timeout=120, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    similarities = [ranked["similarity"] for ranked in answer["queries"]]
    assert {ranked["query"] for ranked in answer["queries"]} == set(USUAL_QUERIES)
    assert similarities == sorted(similarities, reverse=True)
    assert sum(answer["kl_probabilities"].values()) == pytest.approx(1.0)
    assert answer["kl_probabilities"][str(answer["kl_grade"])] == max(answer["kl_probabilities"].values())
    assert [path.name for path in checkpoint_path.parent.iterdir()] == [checkpoint_path.name]


def test_several_images_are_one_study(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path, tmp_path: Path
) -> None:
    Image.linear_gradient("L").rotate(90).save(tmp_path / "lateral.png")
    images = ("--image_path", knee_png, "--image_path", tmp_path / "lateral.png")
    command = ("infer", "--model_path", checkpoint_path, "--query", "normal knee", "--json")
    code, out, _ = knee_siglip(*command, *images)
    study = json.loads(out)
    assert (code, study["images"]) == (0, [str(knee_png), str(tmp_path / "lateral.png")])
    model = load(checkpoint_path, device="cpu")
    assert study["kl_probabilities"] == pytest.approx(
        dict(zip("01234", model.predict_study([knee_png, tmp_path / "lateral.png"]).probabilities, strict=True))
    )
    alone = [json.loads(knee_siglip(*command, *image)[1]) for image in (images[:2], images[2:])]
    assert study["queries"] not in [each["queries"] for each in alone]
    assert set(study["warnings"]) == set(study["images"])


def test_table_shows_the_named_queries_and_the_grade(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path
) -> None:
    queries = ("--query", "severe [OA]", "--query", "normal knee")
    code, out, _ = knee_siglip("infer", "--model_path", checkpoint_path, "--image_path", knee_png, *queries)
    assert code == 0
    assert all(shown in out for shown in ("severe [OA]", "normal knee", "Kellgren-Lawrence grade"))
    assert "Osteophytes" not in out


def test_image_size_other_than_the_checkpoints_is_used(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path
) -> None:
    one_image = ("infer", "--model_path", checkpoint_path, "--image_path", knee_png, "--json")
    own, larger = (json.loads(knee_siglip(*one_image, "--image_size", size)[1])["queries"] for size in ("28", "56"))
    assert own != larger
    code, _, err = knee_siglip(*one_image, "--image_size", "30")
    assert (code, "multiple" in err) == (2, True)


def test_batch_writes_its_files_and_exits_3_when_an_image_failed(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path, tmp_path: Path
) -> None:
    csv, results = tmp_path / "in.csv", tmp_path / "out" / "results.csv"
    csv.write_text("img_path,site\nknee.png,a\ngone.png,b\n")
    batch = ("infer", "--model_path", checkpoint_path, "--csv_path", csv, "--output_path", results, "--batch_size", "2")
    code, out, _ = knee_siglip(*batch)
    assert (code, "1 failed" in out) == (3, True)
    table = pd.read_csv(results)
    assert len(table) == 2
    assert table["status"][0] == "ok"
    assert "gone.png" in table["status"][1]
    csv.write_text("img_path\nknee.png\n")
    code, _, err = knee_siglip(*batch)
    assert (code, f"{results} exists" in err, len(pd.read_csv(results))) == (2, True, 2)
    code, _, err = knee_siglip(*batch, "--output_path", results.with_suffix(".parquet"))
    assert (code, f"{results.with_name('embeddings.npy')} exists" in err) == (2, True)
    assert knee_siglip(*batch, "--overwrite")[0] == 0
    assert len(pd.read_csv(results)) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["infer", "--model_path", "m.pt"], "exactly one"),
        (["infer", "--model_path", "m.pt", "--image_path", "a.png", "--csv_path", "b.csv"], "exactly one"),
        (["infer", "--model_path", "m.pt", "--image_path", "a.png", "--output_path", "r.csv"], "--output_path"),
        (["infer", "--model_path", "m.pt", "--csv_path", "b.csv", "--output_path", "b.csv"], "input itself"),
        (["infer", "--model_path", "m.pt", "--csv_path", "studies.csv"], "studies.csv would be written"),
        (["infer", "--model_path", "m.pt", "--csv_path", "b.csv"], "b.csv does not exist"),
        (["infer", "--model_path", "m.pt", "--folder_path", "gone"], "gone is no folder"),
        (["infer", "--model_path", "m.pt", "--csv_path", "b.csv", "--output_path", "r.xlsx"], ".csv or .parquet"),
        (["infer", "--model_path", "m.pt", "--csv_path", "b.csv", "--batch_size", "0"], "batch_size"),
        (["infer", "--model_path", "m.pt", "--image_path", "a.png", "--device", "abacus"], "abacus"),
        (["infer", "--image_path", "a.png"], "--model_path"),
        (["train", "--learning_rate", "abc"], "learning_rate"),
        (["train", "--learning_rate", "-1"], "train.learning_rate"),
        (["train", "--image_size", "225"], "image_size = 225"),
        (["train", "--params", "gone.yaml"], "gone.yaml does not exist"),
        (["train", "--experiment_name", "../up"], "--output_dir"),
        (["trian"], "trian"),
        (["map", "--model_path", "m.pt", "--image_path", "a.png", "--phrase", " "], "phrase and against"),
        (["map", *MAPPED, "--against", "Effusion"], "not the same one"),
        (["map", *MAPPED, "--method", "magic"], "method = 'magic': there are raw, gradient, occlusion"),
        (["map", *MAPPED, "--output_path", "map.png"], "map.png: name a .jpg"),
        (["map", *MAPPED, "--output_path", "gone/map.jpg"], "gone/map.jpg: name a .jpg"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what(
    knee_siglip: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    code, _, err = knee_siglip(*arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_an_answer_says_what_is_known_of_the_model(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path
) -> None:
    asked = ("infer", "--model_path", checkpoint_path, "--image_path", knee_png)
    answer = json.loads(knee_siglip(*asked, "--json")[1])
    unknown = ["not for clinical use", "not known what it was trained on", "probabilities are not calibrated"]
    assert (answer["cautions"], answer["distance_to_training"]) == (unknown, None)
    assert f"Caution: {'; '.join(unknown)}" in knee_siglip(*asked)[1]


def test_one_image_that_looks_wrong_is_ranked_with_a_warning(
    knee_siglip: Callable[..., tuple[int, str, str]],
    checkpoint_path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Image.new("L", (64, 64), 7).save(tmp_path / "black.png")
    image = ("--model_path", checkpoint_path, "--image_path", tmp_path / "black.png")
    code, out, _ = knee_siglip("infer", *image, "--json")
    assert (code, json.loads(out)["warnings"]) == (0, ["constant_image"])
    code, *_ = knee_siglip("map", *image, "--phrase", "effusion", "--output_path", tmp_path / "map.jpg")
    assert code == 0
    assert caplog.messages == [f"{tmp_path / 'black.png'}: every pixel has the same grey"] * 2


def test_wrong_checkpoint_and_image_are_exit_code_1_without_traceback(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    output = tmp_path / "map.jpg"
    for model, image in ((tmp_path / "broken.png", "x.png"), (checkpoint_path, tmp_path / "broken.png")):
        for command in (["infer"], ["map", "--phrase", "effusion", "--output_path", output]):
            code, out, err = knee_siglip(*command, "--model_path", model, "--image_path", image)
            assert (code, out) == (1, "")
            assert err.startswith("error: ")
            assert "broken.png" in err
    assert not output.exists()


def test_a_map_is_not_overwritten_unasked(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.jpg").write_text("mine")
    asked = ("--model_path", checkpoint_path, "--image_path", knee_png, "--phrase", "effusion")
    code, _, err = knee_siglip("map", *asked, "--output_path", tmp_path / "map.jpg")
    assert (code, "map.jpg exists" in err, (tmp_path / "map.jpg").read_text()) == (2, True, "mine")


@pytest.mark.parametrize("method", ["occlusion", "gradient", "raw"])
def test_the_map_of_any_phrase_is_drawn_beside_the_image(
    knee_siglip: Callable[..., tuple[int, str, str]],
    checkpoint_path: Path,
    knee_png: Path,
    tmp_path: Path,
    method: str,
) -> None:
    for phrase in ("severe effusion", "mild osteoarthritis"):
        words = ("--model_path", checkpoint_path, "--image_path", knee_png, "--phrase", phrase, "--method", method)
        code, out, _ = knee_siglip("map", *words, "--output_path", tmp_path / "map.jpg", "--overwrite")
        assert (code, "not for clinical use" in out) == (0, True)
        assert repr(phrase) in out
        assert ("Not found: " in out) != ("Strongest place: " in out)
        with Image.open(tmp_path / "map.jpg") as picture:
            assert picture.width > 1.9 * picture.height  # two pictures side by side


def test_every_training_flag_reaches_its_parameter(
    knee_siglip: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[tuple[Params, Path, str]] = []
    monkeypatch.setattr(pipeline, "train_outside_dvc", lambda *arguments: started.append(arguments))
    flags = (
        "--data_path my/train.csv --batch_size 32 --image_size 448 --epochs 30 --learning_rate 5e-5 "
        "--weight_decay 0.02 --warmup_ratio 0.1 --temperature 0.1 --max_text_length 512 "
        "--gradient_accumulation_steps 2 --mixed_precision --project_name knees --experiment_name big --seed 7"
    )
    assert knee_siglip("train", *flags.split())[0] == 0
    params, folder, device = started[0]
    assert (params.data.csv, params.image_size, params.seed) == ("my/train.csv", 448, 7)
    train = params.train
    assert (train.batch_size, train.epochs, train.learning_rate, train.weight_decay) == (32, 30, 5e-5, 0.02)
    assert (train.warmup_ratio, train.gradient_accumulation_steps, train.mixed_precision) == (0.1, 2, "auto")
    assert (params.model.temperature, params.model.max_text_length) == (0.1, 512)
    assert (params.tracking.project_name, params.tracking.experiment_name) == ("knees", "big")
    assert (folder, device) == (Path("runs/big"), "auto")


def test_training_starts_from_the_params_in_the_folder_or_those_named(
    knee_siglip: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    started: list[Params] = []
    monkeypatch.setattr(pipeline, "train_outside_dvc", lambda params, *_: started.append(params))
    knee_siglip("train")
    (tmp_path / "params.yaml").write_text("train: {epochs: 3, batch_size: 8}\n")
    (tmp_path / "other.yaml").write_text("train: {epochs: 5}\n")
    knee_siglip("train", "--epochs", "4", "--no-mixed_precision")
    knee_siglip("train", "--params", "other.yaml")
    knee_siglip("train", "--params", "other.yaml", "--steps", "70")
    (tmp_path / "params.yaml").write_text("train: {steps: 60}\n")
    knee_siglip("train", "--epochs", "6")
    knee_siglip("train")
    lengths = [(params.train.epochs, params.train.steps) for params in started]
    assert lengths == [(None, "auto"), (4, "auto"), (5, "auto"), (None, 70), (6, "auto"), (None, 60)]
    assert (started[1].train.batch_size, started[1].train.mixed_precision) == (8, "none")


def test_training_does_not_touch_a_finished_run_or_what_belongs_to_dvc(
    knee_siglip: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "train_outside_dvc", lambda *_: None)
    (tmp_path / "dvc.yaml").touch()
    for folder in ("models", "reports/train", "."):
        assert knee_siglip("train", "--output_dir", folder)[0] == 2
    (tmp_path / "runs/train/reports/train").mkdir(parents=True)
    (tmp_path / "runs/train/final_model.pt").touch()  # killed before its report: goes on
    assert knee_siglip("train")[0] == 0
    (tmp_path / "runs/train/reports/train/speed.json").touch()
    assert knee_siglip("train")[0] == 2
    assert knee_siglip("train", "--overwrite")[0] == 0
    assert knee_siglip("train", "--output_dir", "runs/second")[0] == 0


def test_doctor_exits_1_only_when_something_is_broken(
    knee_siglip: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    note, broken = doctor.Check("disk", "note", "little", "clean up"), doctor.Check("Python", "broken", "2.7", "update")
    monkeypatch.setattr(doctor, "examine", lambda online: [note])
    code, out, _ = knee_siglip("doctor")
    assert (code, "clean up" in out) == (0, True)
    monkeypatch.setattr(doctor, "examine", lambda online: [note, broken])
    assert knee_siglip("doctor")[0] == 1


HEAVY = ("torch", "transformers", "pandas", "scipy", "sklearn", "matplotlib", "mlflow", "wandb", "dvc", "dvclive")

HELP = f"""
import sys
from knee_siglip.cli.main import app
for words in ([], *([name] for name in {{command}}), ["store", "pack"]):
    try:
        app([*words, "--help"], standalone_mode=True)
    except SystemExit as end:
        assert not end.code, words
    assert not (loaded := set({HEAVY}) & set(sys.modules)), (words, loaded)
"""


def test_version_does_not_wait_for_torch() -> None:
    slow = f"assert not set({HEAVY}) & set(sys.modules)"
    check = f"import sys; from knee_siglip.cli.main import main\ntry: main()\nfinally: {slow}"
    version = subprocess.run([sys.executable, "-c", check, "--version"], capture_output=True, text=True)
    assert (version.returncode, version.stdout) == (0, f"knee-siglip {__version__}\n")


def test_help_of_every_command_does_not_wait_for_heavy_imports() -> None:
    commands = ("infer", "train", "doctor", "compare", "map", "split", "store")
    shown = subprocess.run([sys.executable, "-c", HELP.format(command=commands)], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert all(command in shown.stdout for command in commands)


def test_folder_of_files_is_a_batch_and_what_is_no_image_is_a_row_that_says_so(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pacs"
    (folder / "study").mkdir(parents=True)
    knee_png.rename(folder / "study/IM0001")
    (folder / "README").write_text("no image")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    results = tmp_path / "results.parquet"
    batch = ("infer", "--model_path", checkpoint_path, "--folder_path", folder, "--output_path", results, "--json")
    code, out, _ = knee_siglip(*batch)
    assert (code, json.loads(out)["ok"]) == (3, 1)
    table = pd.read_parquet(results).set_index("img_path")["status"]
    assert table["study/IM0001"] == "ok"
    assert "is no image" in table["README"]
    assert "is empty" in table[r"caf\xe9.png"]


def test_name_that_is_no_utf8_is_shown_escaped(
    knee_siglip: Callable[..., tuple[int, str, str]], checkpoint_path: Path, knee_png: Path
) -> None:
    odd = knee_png.rename(knee_png.with_name(os.fsdecode(b"caf\xe9\x1b[31m.png")))
    code, out, _ = knee_siglip("infer", "--model_path", checkpoint_path, "--image_path", odd)
    assert code == 0
    assert "\x1b[31m" not in out
    assert r"caf\xe9\x1b" in "".join(out.split())
