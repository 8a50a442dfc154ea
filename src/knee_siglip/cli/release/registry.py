"""MLflow's registry, and the same versions as GTO's git tags, which `dvc artifacts get` knows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from knee_siglip.core.errors import UsageError, UserError
from knee_siglip.params.sections import TrackingParams
from knee_siglip.tracking.mlflow_models import LoggedModels, connect
from knee_siglip.tracking.privacy import KINDS, is_remote, level_for, without_password
from knee_siglip.tracking.runlog import checksums
from knee_siglip.tracking.tracker import mlflow_place

if TYPE_CHECKING:
    from knee_siglip.cli.release.command import Candidate

CHAMPION = "champion"
ARTIFACT = "model"
"""Name in dvc.yaml's `artifacts`."""

CARD = "model_card.md"
LONGEST_DESCRIPTION = 5000  # characters, MLflow's limit


class Registry:
    """The registered model `name`; is_local: of this machine, so that nothing leaves it."""

    def __init__(self, tracking: TrackingParams, root: Path) -> None:
        if tracking.mlflow == "none":
            raise UsageError("tracking.mlflow is none: there is no registry; set auto or a server")
        place = mlflow_place(tracking, root)
        self.uri, self.root, self.name = str(place["uri"]), root, tracking.project_name
        self.may_copy = "model" in KINDS[level_for(tracking.send, is_remote(self.uri))]
        self.client, experiment = connect(self.uri, self.name, place["artifacts"])
        import mlflow

        mlflow.set_tracking_uri(self.uri)  # where a version's source is looked for, whatever the client's own URI
        self.models = LoggedModels(self.client, experiment)

    @classmethod
    @contextmanager
    def open(cls, tracking: TrackingParams, root: Path) -> Iterator[Self]:
        """A registry whose refusals are sentences.

        Raises:
            UserError: MLflow refuses something or cannot be reached, or git refuses a tag.
        """
        from gto.exceptions import GTOException
        from mlflow.exceptions import MlflowException

        try:
            yield cls(tracking, root)
        except MlflowException as error:
            reason = without_password(str(error).splitlines()[0])
            raise UserError(f"MLflow refused: {reason}; `knee-siglip doctor --online` checks the server") from None
        except GTOException as error:
            raise UserError(f"the commit cannot be tagged: {error}") from None

    def champion(self) -> Any:
        """The present champion's version, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(self.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
                return None
            raise

    def tag(self, commit: str) -> str:
        """GTO's version of a commit, a tag by which git keeps it; made where it has none."""
        from gto.registry import GitRegistry

        with GitRegistry.from_url(str(self.root)) as tags:
            known = tags.find_artifact(ARTIFACT, create_new=True).find_version(commit_hexsha=commit)
            made = known if known and known.is_registered else tags.register(ARTIFACT, commit, simple=True)
        return str(made.version)

    def register(
        self, candidate: "Candidate", tag: str, card: str, files: Sequence[Path], notes: Mapping[str, str]
    ) -> str:
        """The version of this model, made where there is none, with its card and reference; returns its number.

        A server that may not get models gets the card, and how to get the checkpoint.
        """
        get = {"get": f"dvc artifacts get . {ARTIFACT} --rev {tag}"}
        tags = checksums(candidate.path) | get
        model = self.models.find(candidate.sha256) or self.models.log(candidate.path, tags, copied=False)
        if self.may_copy:
            model = self.models.log(candidate.path, tags, copied=True, run_id=model.source_run_id)
            for file in files:
                self.client.log_model_artifact(model.model_id, str(file), "artifacts")
        text = candidate.path.with_name(CARD)
        text.write_text(card, encoding="utf-8")
        self.client.log_model_artifact(model.model_id, str(text))
        version = self._version(candidate, model)
        self.client.update_model_version(self.name, version, card[:LONGEST_DESCRIPTION])
        for key, value in {**notes, **get, "runs": " ".join(candidate.runs)}.items():
            self.client.set_model_version_tag(self.name, version, key, value)
        return version

    def _version(self, candidate: "Candidate", model: Any) -> str:
        quote = '"' if "'" in self.name else "'"
        query = f"name = {quote}{self.name}{quote}"
        if not self.client.search_registered_models(query):
            self.client.create_registered_model(self.name)
        query += f" and tags.sha256 = '{candidate.sha256}'"
        if found := self.client.search_model_versions(query, max_results=1):
            return str(found[0].version)
        tags = {"sha256": candidate.sha256, "commit": candidate.commit, "experiment": candidate.rev}
        source = f"models:/{model.model_id}"
        made = self.client.create_model_version(self.name, source, model.source_run_id, tags, model_id=model.model_id)
        return str(made.version)

    def promote(self, version: str, candidate: "Candidate") -> None:
        """Move the alias and GTO's stage: `dvc artifacts get --stage` brings the model."""
        import gto.api

        tagged: list[Any] = gto.api.find_versions_in_stage(str(self.root), ARTIFACT, CHAMPION) or []
        if candidate.commit not in [stage.commit_hexsha for stage in tagged]:
            note = f"{self.name} version {version}"  # force: it may have been the champion before
            gto.api.assign(str(self.root), ARTIFACT, CHAMPION, ref=candidate.commit, message=note, force=True)
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
