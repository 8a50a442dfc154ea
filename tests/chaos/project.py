"""A miniature project on which every stage takes about a second, and what its undisturbed run leaves."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STAGES = ("sample", "backbones", "validate", "preprocess", "train", "evaluate", "infer", "report")
SIZE, KNEES = 28, 96
WORDS = ("Normal", "Mild", "Moderate", "Severe")
VARYING = ("speed.json",)
"""Files that differ between undisturbed runs."""

MODEL = "models/best_model.pt"
PACKED = "packed/knees.tar"
STORE = ".store"

IMPORTED = ["imported.csv", "imported.import.md", "imported.import.json", "imported.dropped.csv"]

COMMANDS = {
    "pack": (f"store pack {PACKED}", [PACKED]),
    "unpack": (f"store unpack {PACKED}", [STORE]),
    "split": ("split own/unsplit.csv split.csv", ["split.csv"]),
    "import": ("import own/train.csv imported.csv", IMPORTED),
    "map": (
        f"map --model_path {MODEL} --image_path own/images/1.png --phrase Severe --output_path map.jpg",
        ["map.jpg"],
    ),
    "batch": (f"infer --model_path {MODEL} --csv_path own/train.csv --output_path answers/results.csv", ["answers"]),
    "train outside": ("train --params frozen.yaml --output_dir runs/own", ["runs"]),
}
"""Arguments of `knee-siglip`, and what it writes. They read what the stages have left."""

PARAMS: dict[str, Any] = {
    "image_size": SIZE,
    "data": {"csv": "own/train.csv", "images": "own/images", "external": "own/external.csv"},
    "task": "tasks/knee.yaml",
    "sample": {"patients": 8},
    "train": {"batch_size": 16, "steps": 8, "save_every_steps": 2, "mixed_precision": "none"},
    "evaluate": {"robustness": False, "grounding": {"images": 0}, "gallery": 1},
    "infer": {"csv_path": "data/validated/manifest.parquet", "images": "own/images", "batch_size": 8},
    "tracking": {"mlflow": "none", "wandb": "none"},
}


@dataclass(frozen=True)
class Project:
    """A folder with params, data, and after `complete` whatever its stages have left.

    inputs: of each stage as dvc.yaml has them, code left out. outs: the same, and of each command. seconds: that each
    takes undisturbed.
    """

    folder: Path
    inputs: dict[str, list[str]]
    outs: dict[str, list[str]]
    seconds: dict[str, float] = field(default_factory=dict)

    def copy(self, target: Path) -> "Project":
        """The same project in another folder, with its times: DVC would notice other ones."""
        shutil.copytree(self.folder, target, symlinks=True)
        return Project(target, self.inputs, self.outs, self.seconds)

    def remove_outs(self, part: str) -> None:
        """What DVC does before it starts a stage; of a command, what it would not replace."""
        for name in self.outs[part]:
            path = self.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def results(self, part: str) -> dict[str, str]:
        """sha256 of every file that a stage or a command is to leave, and of each row of the store that it fills."""
        found = self._stored_rows() if STORE in self.outs[part] else {}
        for name in self.outs[part]:
            if name == STORE:
                continue
            for path in files_of(self.folder / name):
                if path.name not in VARYING:
                    content = path.read_bytes().replace(bytes(self.folder), b"")  # an import's report names it
                    found[str(path.relative_to(self.folder))] = hashlib.sha256(content).hexdigest()
        return found

    def half_written(self) -> list[Path]:
        """Unfinished files outside of the store, which removes them itself."""
        return [path for path in files_of(self.folder) if path.suffix == ".partial" and STORE not in path.parts]

    def _stored_rows(self) -> dict[str, str]:
        """sha256 of the pixels of each image, read without the project's own code."""
        rows = {}
        for log in sorted((self.folder / STORE).glob("pixels/*/*.ids")):
            pixels = log.with_suffix(".pixels").read_bytes()
            for line in log.read_text().splitlines():
                row, image_id, *_ = line.split(" ")
                rows[image_id] = hashlib.sha256(pixels[int(row) * SIZE**2 :][: SIZE**2]).hexdigest()
        return rows

    def write_lock(self) -> None:
        """dvc.lock as DVC writes it after all stages."""
        stages = {
            stage: {
                "deps": [{"path": path} for path in self.inputs[stage]],
                "outs": [
                    {"path": path, "hash": "md5", "md5": md5_of(self.folder / path)}
                    for path in self.outs[stage]
                    if (self.folder / path).exists()
                ],
            }
            for stage in STAGES
        }
        (self.folder / "dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))


def make_project(folder: Path) -> Project:
    """Params, task and images of noise, each brightness with a text of its own; two knees of each patient."""
    (folder / "own/images").mkdir(parents=True)
    shutil.copytree(ROOT / "tasks", folder / "tasks")
    shutil.copy(ROOT / "data/no_external.csv", folder / "own/external.csv")
    rng = np.random.default_rng(0)
    rows = ["img_path,impression,split,patient_id,side,kl_grade"]
    for number in range(KNEES):
        patient, bright = number // 2, number % 4
        image = rng.integers(60 * bright, 60 * bright + 60, (40, 36), dtype=np.uint8)
        name = f"images/{number}.{'png' if number % 2 else 'bmp'}"
        Image.fromarray(image).save(folder / "own" / name)
        split = ("train", "train", "val", "test")[patient % 4]
        side = ("Left", "Right")[number % 2]
        text = f"{WORDS[bright]} osteoarthritis of the {side.lower()} knee."
        rows.append(f"{name},{text},{split},p{patient},{side.lower()},{bright}")
    (folder / "own/train.csv").write_text("\n".join(rows) + "\n")
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(PARAMS, file)
    frozen = PARAMS | {"train": PARAMS["train"] | {"freeze": {"vision": "all"}}}
    with (folder / "frozen.yaml").open("w") as file:
        YAML().dump(frozen, file)
    unsplit = [",".join(cell for at, cell in enumerate(row.split(",")) if at != 2) for row in rows]
    (folder / "own/unsplit.csv").write_text("\n".join(unsplit) + "\n")
    (folder / ".dvc").mkdir()
    (folder / "data").mkdir()
    (folder / "data/params_checked.txt").write_text("checked")
    return Project(folder, *_edges())


def files_of(path: Path) -> list[Path]:
    """The files of a folder, or the file itself; none where there is nothing."""
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())


def md5_of(path: Path) -> str:
    """As dvc.lock has it."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    names = sorted((file.relative_to(path).as_posix(), file) for file in files_of(path))
    tree = json.dumps([{"md5": md5_of(file), "relpath": name} for name, file in names])
    return hashlib.md5(tree.encode(), usedforsecurity=False).hexdigest() + ".dir"


def environment(folder: Path, part: str) -> dict[str, str]:
    """Of a stage that DVC starts in this project, or of a command that a user starts."""
    in_dvc = {"DVC_ROOT": str(folder), "DVC_STAGE": part} if part in STAGES else {}
    return in_dvc | {
        "KNEE_SIGLIP_STORE": str(folder / ".store"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "PATH": os.environ["PATH"],
    }


def _edges() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Data that each stage reads, and its outs, as dvc.yaml has them."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    inputs, outs = {}, {}
    for stage in STAGES:
        paths = [_resolve(path) for path in stages[stage]["deps"]]
        inputs[stage] = [path for path in paths if not path.startswith(("src/", "stages/", "tasks/"))]
        listed = [*stages[stage].get("outs", []), *stages[stage].get("metrics", [])]
        outs[stage] = [path if isinstance(path, str) else next(iter(path)) for path in listed]
    return inputs, outs | {name: written for name, (_, written) in COMMANDS.items()}


def _resolve(path: str) -> str:
    """`${data.csv}` is what params.yaml says."""
    if not path.startswith("${"):
        return path
    value: Any = PARAMS
    for key in path[2:-1].split("."):
        value = value[key]
    return str(value)
