"""No command and no stage waits for a library that it does not need before its work begins."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "pandas", "mlflow", "wandb", "transformers", "sklearn", "matplotlib", "huggingface_hub", "dvc")

ALL_HELP = """
import typer
from knee_siglip.cli.main import app

def ask(command, *words):
    for name, child in getattr(command, "commands", {}).items():
        ask(child, *words, name)
    try:
        app([*words, "--help"])
    except SystemExit as end:
        assert not end.code, words

ask(typer.main.get_command(app))
"""

TABLES_ALONE = ("sample", "validate", "preprocess", "report")
NETWORKS = ("backbones", "train", "evaluate", "infer")


def imports_of(stage: str) -> str:
    """Every import of a stage's script, those after its params are checked too."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text(encoding="utf-8"))
    return "\n".join(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)))


def loaded_by(code: str) -> set[str]:
    """Which of the `HEAVY` libraries a new process has imported after this code."""
    asked = f"{code}\nimport sys\nprint('loaded:', *({set(HEAVY)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("loaded:")[2].split())


def test_help_of_no_command_waits_for_a_heavy_library() -> None:
    assert loaded_by(ALL_HELP) == set()


def test_what_the_store_holds_is_listed_without_torch() -> None:
    assert loaded_by("import knee_siglip.cli.store.care, knee_siglip.training.unfinished") == set()


def test_stages_load_heavy_libraries_after_they_can_tell_of_ctrl_c() -> None:
    """Seconds in which Ctrl-C, or a wrong param, would wait or end in a traceback."""
    scripts = [str(ROOT / f"stages/{stage}.py") for stage in (*TABLES_ALONE, *NETWORKS)]
    assert loaded_by(f"import runpy\nfor script in {scripts}: runpy.run_path(script)") == set()


def test_every_stage_is_looked_at() -> None:
    stages = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert stages == {"params", *TABLES_ALONE, *NETWORKS}


@pytest.mark.parametrize(
    ("stages", "needed"),
    [(["params"], set()), (TABLES_ALONE, {"pandas"}), (NETWORKS, {"pandas", "torch"})],
    ids=["params", "tables", "networks"],
)
def test_a_stage_begins_with_the_libraries_it_needs(stages: list[str], needed: set[str]) -> None:
    assert loaded_by("\n".join(imports_of(stage) for stage in stages)) == needed
