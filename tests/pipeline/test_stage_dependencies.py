"""What a stage of dvc.yaml depends on is what its script imports: DVC reruns exactly what changed code can change."""

import ast
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SOURCES = Path("src")

STARTED = {"train": [f"knee_siglip.tracking.{name}" for name in ("sender", "backend", "dvclive_run")]}
"""What a stage runs in a process of its own and writes an out with: DVCLive's curves. The other backends, MLflow
and W&B, write none."""

TERMINAL = {"src/knee_siglip/core/terminal.py": "of the folder core, which these stages name as a whole"}
SUPERFLUOUS: dict[str, dict[str, str]] = {"train": TERMINAL, "evaluate": TERMINAL, "infer": TERMINAL}
"""Stage to files that it depends on without importing them, with the reason."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("knee_siglip", cache_dir=None, exclude_type_checking_imports=True)


def stages() -> dict[str, dict]:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def imported_by_script(script: Path, modules: set[str]) -> set[str]:
    """Modules of the package that a script names in its imports, those inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names & modules


def closure(stage: str, graph: grimp.ImportGraph) -> set[str]:
    """Python files of the package that the stage's script imports, directly or not, packages' own files included."""
    script = ROOT / "stages" / f"{stage}.py"
    direct = imported_by_script(script, graph.modules)
    modules = direct.union(STARTED.get(stage, []), *(graph.find_upstream_modules(module) for module in direct))
    parents = {module.rpartition(".")[0] for module in modules}
    while parents - modules - {""}:
        modules |= parents - {""}
        parents = {module.rpartition(".")[0] for module in modules}
    return {str(source_file(module)) for module in modules}


def source_file(module: str) -> Path:
    """Path of a module's file from the project's root."""
    path = SOURCES / module.replace(".", "/")
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


def declared(stage: str) -> set[str]:
    """Python files of the package under the stage's `deps`; empty ones say nothing."""
    files: set[str] = set()
    for dep in map(str, stages()[stage]["deps"]):
        path = ROOT / dep
        files |= (
            {str(path.relative_to(ROOT))} if path.is_file() else {str(f.relative_to(ROOT)) for f in path.rglob("*")}
        )
    return {file for file in files if file.startswith(f"{SOURCES}/") and file.endswith(".py")}


def is_empty(file: str) -> bool:
    return not (ROOT / file).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("stage", stages())
def test_a_stage_depends_on_every_file_that_it_imports(stage: str, graph: grimp.ImportGraph) -> None:
    missing = {file for file in closure(stage, graph) - declared(stage) if not is_empty(file)}
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {sorted(missing)}"


@pytest.mark.parametrize("stage", stages())
def test_a_stage_depends_on_nothing_else_without_a_reason(stage: str, graph: grimp.ImportGraph) -> None:
    superfluous = {file for file in declared(stage) - closure(stage, graph) if not is_empty(file)}
    assert superfluous == set(SUPERFLUOUS.get(stage, {}))


@pytest.mark.parametrize("stage", stages())
def test_a_stage_depends_on_its_script(stage: str) -> None:
    assert f"stages/{stage}.py" in stages()[stage]["deps"]


@pytest.mark.parametrize(
    ("file", "rerun"),
    [
        ("report/html/templates/style.css.j2", {"report"}),
        ("report/evaluation/verdict.py", {"report"}),
        ("cli/store/travel.py", set()),
        ("cli/compare/comparison.py", set()),
        ("metrics/matching/retrieval.py", {"train", "evaluate"}),
        ("pairs/augmentation.py", {"train", "evaluate"}),
        ("imaging/decode/dicom.py", {"validate", "preprocess", "train", "evaluate", "infer", "report"}),
        ("encoders/small/vision/model.safetensors", {"backbones", "train"}),
    ],
)
def test_an_edit_reruns_the_stages_that_use_the_file(file: str, rerun: set[str]) -> None:
    path = SOURCES / "knee_siglip" / file
    assert (ROOT / path).is_file()
    assert {name for name, stage in stages().items() if is_under(path, stage["deps"])} == rerun


def is_under(file: Path, deps: list[str]) -> bool:
    """Whether one of the dependencies is the file, or a folder that holds it."""
    return any(file.is_relative_to(dep) for dep in deps)


@pytest.mark.parametrize(
    ("stage", "watched"),
    [("validate", {"${data.csv}", "${data.images}"}), ("infer", {"${infer.csv_path}", "${infer.images}"})],
)
def test_a_replaced_image_reruns_the_stage_that_reads_its_table(stage: str, watched: set[str]) -> None:
    assert watched <= set(stages()[stage]["deps"])


@pytest.mark.parametrize("stage", stages())
def test_every_out_is_cached_so_that_the_run_cache_restores_the_stage(stage: str) -> None:
    """DVC keeps no run of a stage with an uncached out, unless it is a metric: going back would train again."""
    assert [out for out in stages()[stage].get("outs", []) if not isinstance(out, str)] == []


def test_the_tasks_file_reruns_what_asks_it_and_no_training() -> None:
    """Other stages check the file too, with the whole of params.yaml, but none of their outs depends on it."""
    of_the_file = {name for name, stage in stages().items() if "${task}" in stage["deps"]}
    assert of_the_file == {"params", "validate", "evaluate", "report", "infer"}
    assert "evaluate.label_prompts" in stages()["infer"]["params"]
