"""python -m tests.params.hostile_values

Rewrites docs/hostile-params.md: a hundred hostile values of params.yaml, and what each of them gets before any stage
works. tests/params/test_hostile_values.py fails where the file and the code differ.
"""

import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from knee_siglip.core.errors import UserError
from knee_siglip.params.checks import check_inputs
from knee_siglip.params.files import parse_params

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "hostile-params.md"

HEADER = """# A hundred hostile params

What each value gets from `dvc repro` before any stage works: the first stage checks the whole of params.yaml.
*accepted* says why it may pass. The page is written by `python -m tests.params.hostile_values`; a test compares it with
what the code answers.

| value | answer |
|---|---|
"""

INF, NAN = float("inf"), float("nan")
EXPONENTIAL = "(a|aa)+$"
TRACKER = "a tracker that fails never stops a run; training warns, and `knee-siglip sync` sends what was missed"
NO_FILE = "no second test set, for `knee-siglip train`; DVC, which cannot depend on null, stops with its own error"
DIVERGES = "a number; where training diverges with it, it stops within four steps and names the images"

HOSTILE: list[tuple[str, Any] | tuple[str, Any, str]] = [
    ("image_size", 0), ("image_size", -224), ("image_size", 225), ("image_size", 100_000), ("image_size", 224.0),
    ("image_size", "224"), ("image_size", None), ("image_size", True), ("image_size", [224]),
    ("seed", -1), ("seed", 2**32), ("seed", 0.5), ("seed", "now"),
    ("data.csv", ""), ("data.csv", "nowhere.csv"), ("data.csv", "/dev/zero"), ("data.csv", "own"), ("data.csv", None),
    ("data.csv", ["a.csv"]), ("data.images", " "), ("data.images", "nowhere"), ("data.images", 7),
    ("data.external", ""), ("data.external", "nowhere.csv"), ("data.external", "own"), ("data.external", "/dev/zero"),
    ("data.external", 7), ("data.external", None, NO_FILE),
    ("data.patient_id_pattern", "("), ("data.patient_id_pattern", EXPONENTIAL), ("data.patient_id_pattern", "[z-a]"),
    ("data.patient_id_pattern", "(a+)+$", "exponential in `re`, but not in the library that runs it"),
    ("data.patient_id_pattern", "no_group"),
    ("task", "nowhere.yaml"), ("task", "own/train.csv"), ("task", "/etc"), ("task", ""),
    ("sample.patients", 0), ("sample.patients", 10**9), ("sample.size", 1), ("sample.size", 10**6),
    ("sample.seed", -1),
    ("validate.on_leak", "ignore"), ("validate.on_leak", True), ("validate.sections", "findings"),
    ("preprocess.fit", "stretch"), ("preprocess.contrast", None), ("preprocess.inversion", "yes"),
    ("model.vision", ""), ("model.vision", "microsoft/rad-dino"), ("model.vision", "../../etc/passwd"),
    ("model.vision_revision", "main", "not used by the small encoder; a hub name needs a 40-digit hash"),
    ("model.text", "https://example.org/model"), ("model.projection", "tower"),
    ("model.max_text_length", 0), ("model.max_text_length", 10**9), ("model.max_text_length", "long"),
    ("model.temperature", 0), ("model.temperature", -0.07), ("model.temperature", NAN), ("model.temperature", 1e-320),
    ("model.bias_init", NAN), ("model.bias_init", INF), ("model.bias_init", "-10"), ("model.bias_init", 1e30),
    ("train.batch_size", 0), ("train.batch_size", 1), ("train.batch_size", 10**12), ("train.batch_size", 64.5),
    ("train.steps", 0), ("train.steps", -5), ("train.steps", 10**15), ("train.epochs", 0), ("train.epochs", 10**12),
    ("train.learning_rate", 0), ("train.learning_rate", -1e-3), ("train.learning_rate", NAN),
    ("train.learning_rate", INF), ("train.learning_rate", "1e-4 "), ("train.learning_rate", 1e300),
    ("train.learning_rate", 1.0, DIVERGES),
    ("train.vision_learning_rate_scale", 0), ("train.vision_learning_rate_scale", 1e300), ("train.layer_decay", 0),
    ("train.layer_decay", 1.5), ("train.weight_decay", -1), ("train.weight_decay", 1e300),
    ("train.warmup_ratio", 1), ("train.warmup_ratio", -0.1), ("train.gradient_accumulation_steps", 0),
    ("train.max_grad_norm", 0), ("train.max_grad_norm", NAN), ("train.mixed_precision", "fp8"),
    ("train.patience", 0), ("train.save_every_minutes", 0), ("train.init_from", "nowhere.pt"),
    ("train.init_from", "models/best_model.pt"), ("train.freeze", "all"), ("train.freeze.vision", -1),
    ("train.lora.dropout", 1), ("train.augment.rotation", INF), ("train.augment.rotation", 1e9),
    ("train.augment.scale", 2), ("train.augment.gamma", NAN), ("train.learning_rte", 1e-3),
    ("evaluate.splits", []), ("evaluate.splits", ["test", "test"]), ("evaluate.splits", ["all"]),
    ("evaluate.batch_size", 1), ("evaluate.batch_size", 10**12), ("evaluate.label_prompts", {"7": ["x"]}),
    ("evaluate.label_prompts", {"0": []}), ("evaluate.label_prompts", {"0": [" "]}),
    ("evaluate.findings", {"cyst": {"positive": ["a cyst"], "negative": ["none"], "text": EXPONENTIAL}}),
    ("evaluate.findings", {"cyst": {"positive": ["a cyst"], "negative": ["none"], "column": "nowhere"}}),
    ("evaluate.subgroups", ["nowhere"]), ("evaluate.subgroups", [""]), ("evaluate.grounding.images", -1),
    ("evaluate.gallery", 10**9), ("infer.csv_path", ""), ("infer.csv_path", "nowhere.csv"), ("infer.csv_path", "own"),
    ("infer.images", "nowhere"), ("infer.batch_size", 0), ("infer.batch_size", 10**12), ("infer.queries", [""]),
    ("infer.queries", "a knee"), ("infer.split", "all"),
    ("tracking.mlflow", ""), ("tracking.mlflow", "ftp://example.org", TRACKER), ("tracking.wandb", "on"),
    ("tracking.send", "everything"), ("tracking.project_name", ""), ("tracking.experiment_name", "a\x1b[2J"),
]  # fmt: skip
"""Key and value, and where it may pass, why."""


def answers() -> Iterator[tuple[str, str]]:
    """Each hostile value as params.yaml shows it, and what it gets."""
    shipped = YAML(typ="safe").load(ROOT / "params.yaml")
    shipped["data"] |= {"csv": "own/train.csv", "images": "own"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("tasks").symlink_to(ROOT / "tasks")
        Path("data").symlink_to(ROOT / "data")
        Path("own").mkdir()
        Path("own/train.csv").write_text("img_path,impression,split\n")
        for key, value, *why in HOSTILE:
            shown = f"{key}: {_shown(value)}"
            try:
                check_inputs(parse_params(_changed(shipped, key, value), "params.yaml"))
                yield shown, f"*accepted*: {why[0]}" if why else "*accepted*"
            except UserError as error:
                yield shown, str(error).replace(folder, "").replace("\n", " ")


def page() -> str:
    """The whole of docs/hostile-params.md."""
    rows = (f"| `{shown}` | {_cell(answer)} |\n" for shown, answer in answers())
    return HEADER + "".join(rows)


def _changed(shipped: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The shipped params with another value."""
    *sections, last = key.split(".")
    params: dict[str, Any] = {name: dict(item) if isinstance(item, dict) else item for name, item in shipped.items()}
    place = params
    for section in sections:
        place[section] = dict(place[section])
        place = place[section]
    place[last] = value
    return params


def _shown(value: Any) -> str:
    if isinstance(value, float) and not np.isfinite(value):
        return f".{value}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text.replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
