"""README's default figures are those that were measured last, and `make verify` tells what differs."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import readme_figures  # noqa: E402
import verify  # noqa: E402
from pipeline_run import differing  # noqa: E402


def test_the_readme_shows_what_was_measured() -> None:
    """Else: python benchmarks/readme_figures.py."""
    measured = json.loads(readme_figures.MEASURED.read_text())
    if "default" not in measured:
        pytest.skip("not measured yet: python benchmarks/pipeline_run.py --parts default")
    headline = measured["default"]["details"]["headline"]
    assert len(headline) == 3
    readme = readme_figures.README.read_text()
    assert readme_figures.updated(readme, headline) == readme


def test_the_block_has_the_first_seed_mean_and_deviation_of_each_metric() -> None:
    text = f"before\n{readme_figures.BEGIN}old\n{readme_figures.END}after\n"
    found = readme_figures.updated(text, [{"kappa": 0.9, "epoch": 8}, {"kappa": 0.8, "epoch": 8}])
    rows = [line.split() for line in found.splitlines()]
    assert ["kappa", "0.9", "0.85", "0.071"] in rows
    assert ["epoch", "8", "8", "0"] in rows
    assert (rows[0], rows[-1], ["old"] in rows) == (["before"], ["after"], False)


@pytest.mark.parametrize(
    ("found", "different"),
    [({"kappa": 0.9, "loss": 1.5}, []), ({"kappa": 0.9001, "loss": 1.5}, ["kappa"]), ({"kappa": 0.9}, ["loss"])],
)
def test_a_metric_that_differs_in_any_digit_or_is_missing_is_named(found: dict, different: list[str]) -> None:
    assert differing({"kappa": 0.9, "loss": 1.5}, found) == different


@pytest.mark.parametrize(("found", "code"), [({"kappa": 0.9}, 0), ({"kappa": 0.91}, 1), ({}, 1)])
def test_verify_shows_each_difference_and_fails_on_any(
    found: dict[str, float], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finished:
        """A clone whose run gives `found` where {"kappa": 0.9} is committed."""

        def __init__(self, folder: Path) -> None:
            self.states = iter([{"kappa": 0.9}, found])

        def headline(self) -> dict[str, float]:
            return next(self.states)

        def run(self, *command: str) -> tuple[float, str]:
            assert command == ("dvc", "repro")
            return 1.0, ""

    monkeypatch.setattr(verify, "Clone", Finished)
    with pytest.raises(SystemExit) as end:
        verify.main()
    assert end.value.code == code
    printed = capsys.readouterr().out
    assert f"differ from the committed ones: {code} " in printed
    assert "kappa" in printed
