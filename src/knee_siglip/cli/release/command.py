"""`knee-siglip release EXP`: a version in MLflow's registry and a git tag; the champion only if it is surely better.

A release keeps its commit: `dvc artifacts get . model --stage champion` brings the model, `compare` its predictions.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knee_siglip.cli.compare.command import WORKSPACE, read_at, rows_of_split
from knee_siglip.core import paths
from knee_siglip.core.cells import echo
from knee_siglip.core.errors import EXIT_FAILED, UsageError, UserError
from knee_siglip.core.files import atomic_text, lock, sha256
from knee_siglip.params.files import load_params

# torch, pandas, dvc and mlflow are imported inside the functions: `--help` must not wait for them.
if TYPE_CHECKING:
    from knee_siglip.cli.compare.comparison import Comparison

SUBGROUPS = paths.EVALUATION_REPORT / "tables/subgroups.csv"
CARD = Path("MODEL_CARD.md")
LIMIT = 0.05
"""Of p, adjusted for the number of metrics."""


@dataclass(frozen=True)
class Candidate:
    """What a commit holds of a model: the checkpoint, copied to `path`, and what was measured on it.

    runs: the commits of all trainings that stand for it in comparisons, its own first.
    """

    rev: str
    commit: str
    runs: list[str]
    path: Path
    sha256: str
    metrics: dict[str, Any]
    facts: dict[str, Any]
    subgroups: str


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate replaces the champion, and why."""

    is_better: bool
    reason: str


def release(
    rev: Annotated[str, typer.Argument(metavar="EXP", help="A DVC experiment, branch, tag or commit.")],
    seeds: Annotated[
        list[str] | None,
        typer.Option("--seed-of", metavar="EXP", help="The same with another seed, repeatable: counts in comparisons."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A headline metric that decides, repeatable. None: all.")
    ] = None,
    force: Annotated[
        str | None, typer.Option("--force", metavar="WHY", help="Make it the champion whatever was measured.")
    ] = None,
    card: Annotated[Path, typer.Option("--card", help="Where the champion's model card is written.")] = CARD,
) -> None:
    """Register a model, and make it the champion if it is surely better than the present one (exit code 1: it is not).

    Better: by at least one metric on the test rows of both, and by none worse; p adjusted for their number below 0.05.
    """
    root = paths.project_root()
    if root is None or rev == WORKSPACE:
        raise UsageError(
            f"{rev}: name a commit or experiment of a DVC project, which can be found again (dvc exp save)"
        )
    from knee_siglip.cli.release.card import model_card
    from knee_siglip.cli.release.registry import Registry
    from knee_siglip.inference.predictor import Predictor
    from knee_siglip.serve.reference import write_reference

    tracking, store = load_params(root / paths.PARAMS).tracking, paths.store_root()
    with (
        lock(store / "release.lock", "releasing a model", wait=0),
        TemporaryDirectory(dir=store) as folder,
        Registry.open(tracking, root) as registry,
    ):
        candidate = read_candidate(root, [rev, *(seeds or [])], Path(folder))
        champion = registry.champion()
        if champion and champion.tags.get("sha256") == candidate.sha256:
            echo(f"{rev} is the champion already: {registry.name} version {champion.version}")
            return
        verdict = _judge_against(champion, candidate, metric or (), force)
        tag = registry.tag(candidate.commit)
        text = model_card(candidate, registry.name, tag, verdict.reason)
        files = write_reference(Predictor(candidate.path, device="cpu", precision="float32"), Path(folder))
        version = registry.register(candidate, tag, text, files, {"verdict": verdict.reason, "forced": force or ""})
        echo(f"{registry.name} version {version}: {rev}, commit {candidate.commit[:7]}, in git {tag}")
        if not verdict.is_better:
            echo(f"not the champion: {verdict.reason}")
            raise typer.Exit(EXIT_FAILED)
        registry.promote(version, candidate)
        with atomic_text(card) as file:
            file.write(text)
    echo(f"the champion: {verdict.reason}; its card: {card}")


def read_candidate(root: Path, revs: Sequence[str], folder: Path) -> Candidate:
    """Read all that a release of the first revision needs, before anything is registered.

    Raises:
        UserError: there is no such revision, or something was not kept of it.
    """
    runs, rev = [_commit(root, name) for name in revs], revs[0]
    path = folder / paths.BEST_MODEL.name
    path.write_bytes(read_at(root, rev, paths.BEST_MODEL))
    metrics, facts = (
        json.loads(read_at(root, rev, paths.EVALUATION_REPORT / name)) for name in ("metrics.json", "facts.json")
    )
    digest = sha256(path)
    if facts["model_sha256"] != digest:
        raise UserError(f"{rev}: its evaluation is of another model than its {paths.BEST_MODEL}; run dvc repro there")
    subgroups = ""
    with suppress(UserError):  # there is no such table where none was measured
        subgroups = read_at(root, rev, SUBGROUPS).decode()
    return Candidate(rev, runs[0], runs, path, digest, metrics, facts, subgroups)


def _commit(root: Path, rev: str) -> str:
    from dvc.repo import Repo
    from dvc.scm import RevError, resolve_rev

    try:
        with Repo(str(root)) as repo:
            return str(resolve_rev(repo.scm, rev))
    except RevError:
        raise UsageError(f"{rev} is no git revision, branch or tag, nor a DVC experiment (dvc exp list)") from None


def _judge_against(champion: Any, candidate: Candidate, metrics: Sequence[str], force: str | None) -> Verdict:
    if champion is None:
        return Verdict(True, "there was none before")
    if force:
        return Verdict(True, f"forced over version {champion.version}: {force}")
    from knee_siglip.cli.compare.comparison import compare

    if "runs" not in champion.tags:
        raise UserError(
            f"the champion, version {champion.version}, was not made by knee-siglip release, and nothing says where "
            "its predictions are; to replace it: --force WHY"
        )
    new = [rows_of_split(commit, "test") for commit in candidate.runs]
    try:
        present = [rows_of_split(commit, "test") for commit in champion.tags["runs"].split()]
    except UsageError:
        raise UserError(
            f"the champion, version {champion.version}, is of a commit that this clone lacks; where it was released: "
            "git push --tags && dvc push --all-tags; then here: git fetch --tags"
        ) from None
    verdict = judge(compare(present, new, metrics))
    return Verdict(verdict.is_better, f"against version {champion.version} {verdict.reason}")


def judge(comparisons: Sequence["Comparison"]) -> Verdict:
    """Judge B by its comparison with A; all headline metrics are better when higher."""
    sure = [row for row in comparisons if row.p_holm is not None and row.p_holm < LIMIT]
    worse = [row for row in sure if row.difference < 0]
    if shown := worse or sure:
        named = ", ".join(f"{row.metric} {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in shown)
        return Verdict(not worse, f"surely {'worse' if worse else 'better'} by {named}")
    return Verdict(False, f"surely better by none of {len(comparisons)} metrics")
