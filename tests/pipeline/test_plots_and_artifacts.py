"""What `dvc plots` draws without a network, and the model under its name: dvc.yaml's own entries on stand-in files."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc_render.vega import VegaRenderer
from PIL import Image

from pages import open_browser

ROOT = Path(__file__).parents[2]
PLOTS_PAGE = ROOT / ".dvc/plots.html"
FIGURES = "reports/evaluation/figures"
MODEL = "models/best_model.pt"


def declared() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


class Project:
    """A DVC repository with our plots and artifacts, whose files a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = os.environ | {"PATH": path}
        self.run("git", "init", "--quiet")
        self.run("git", "config", "user.name", "A User")
        self.run("git", "config", "user.email", "user@example.org")
        self.run("dvc", "init", "--quiet")
        for name in ("config", "plots.html"):
            (folder / ".dvc" / name).write_bytes((ROOT / ".dvc" / name).read_bytes())
        parts = {key: declared()[key] for key in ("plots", "artifacts")}
        (folder / "dvc.yaml").write_text(yaml.safe_dump(parts))

    def run(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.folder, env=self.env, text=True, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)

    def write_plots(self, level: int) -> None:
        """A table of three rows for each curve of dvc.yaml, and two figures."""
        columns: dict[str, set[str]] = {}
        for entry in declared()["plots"]:
            for plot in entry.values() if isinstance(entry, dict) else ():
                for file, names in plot["y"].items():
                    columns.setdefault(file, {plot["x"]}).update([names] if isinstance(names, str) else names)
        for file, names in columns.items():
            separator = "\t" if file.endswith(".tsv") else ","
            rows = [separator.join([str(row * level)] * len(names)) for row in range(1, 4)]
            write(self.folder / file, "\n".join([separator.join(sorted(names)), *rows]))
        for name in ("confusion.png", "grounding_1.jpg"):
            (self.folder / FIGURES).mkdir(parents=True, exist_ok=True)
            Image.new("L", (20 * level, 20)).save(self.folder / FIGURES / name)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Figures and a model of a first revision, of which the model is registered as v1.0.0."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.write_plots(1)
    write(project.folder / MODEL, "weights")
    project.run("dvc", "add", "--quiet", MODEL)
    project.commit("first")
    project.run("git", "tag", "--annotate", "model@v1.0.0", "--message", "as `gto register model` writes it")
    return project


def test_two_revisions_are_drawn_without_a_network(project: Project) -> None:
    project.write_plots(2)
    project.run("dvc", "plots", "diff", "HEAD", "workspace", "--out", "page")
    page = project.folder / "page/index.html"
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=[^>]*>", page.read_text()) == []
    curves = sum(isinstance(entry, dict) for entry in declared()["plots"])
    browser = open_browser()
    try:
        browser.execute_cdp_cmd("Network.enable", {})
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        browser.get(page.as_uri())
        deadline = time.monotonic() + 60
        while len(browser.find_elements("css selector", ".vega-embed canvas, .vega-embed svg.marks")) < curves:
            assert time.monotonic() < deadline, browser.get_log("browser")
            time.sleep(0.05)
        widths = browser.execute_script("return Array.from(document.images, image => image.naturalWidth)")
        assert sorted(widths) == [20, 20, 40, 40]
        assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    finally:
        browser.quit()


def test_the_offline_page_holds_the_versions_that_dvc_asks_for() -> None:
    """Else: python scripts/make_plots_page.py."""
    asked = re.findall(r"/npm/([\w-]+@[\d.]+)", VegaRenderer.SCRIPTS)
    assert len(asked) == 3
    page = PLOTS_PAGE.read_text(encoding="utf-8")
    assert re.findall(r"<!-- (\S+@\S+)\nCopyright", page) == asked
    assert "{plot_divs}" in page
    assert page.count("Redistribution and use in source and binary forms") == 3


def test_the_figures_and_the_model_that_dvc_yaml_names_are_outs_of_stages() -> None:
    content = declared()
    outs = {out for stage in content["stages"].values() for out in stage.get("outs", []) if isinstance(out, str)}
    assert FIGURES in content["plots"]
    assert content["artifacts"]["model"]["path"] == MODEL
    assert {FIGURES, MODEL} <= outs


def test_a_registered_version_of_the_model_is_fetched_by_its_name(project: Project) -> None:
    write(project.folder / MODEL, "newer weights")
    project.run("dvc", "artifacts", "get", ".", "model", "--rev", "v1.0.0", "--out", "fetched.pt")
    assert (project.folder / "fetched.pt").read_text() == "weights\n"
