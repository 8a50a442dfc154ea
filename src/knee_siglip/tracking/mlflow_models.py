"""Checkpoints as MLflow's LoggedModels."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from knee_siglip.core.files import link_or_copy
from knee_siglip.tracking.backend import checksum_tags
from knee_siglip.tracking.packaging import write_model
from knee_siglip.tracking.runlog import Event


class LoggedModels:
    """Those of one experiment; client: an `MlflowClient`."""

    def __init__(self, client: Any, experiment: str) -> None:
        self.client = client
        self.experiment = experiment

    def find(self, sha256: str, name: str = "", run_id: str = "") -> Any:
        """The LoggedModel of the checkpoint with this hash, of that name and run where they are given; else None."""
        wanted = {"tags.sha256": sha256, "name": name, "source_run_id": run_id}
        query = " AND ".join(f"{key} = '{value}'" for key, value in wanted.items() if value)
        found = self.client.search_logged_models([self.experiment], query, max_results=1)
        return found[0] if found else None

    def log(self, event: Event, run_id: str, step: int) -> str:
        """Log a checkpoint as an output of the run; returns its id. A second attempt goes on where the first one ended.

        A copy has files, which MLflow loads; a reference has tags: how to get and to know the file.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        path, tags = Path(event["path"]), checksum_tags(event)
        model = self.find(tags["sha256"], path.stem, run_id) or self.client.create_logged_model(
            self.experiment, path.stem, run_id, tags, model_type="image-text"
        )
        model_id = str(model.model_id)
        if model.status != LoggedModelStatus.READY:
            if event["how"] == "copy":
                self._store(path, model, run_id)
            self.client.finalize_logged_model(model_id, LoggedModelStatus.READY)
        outputs = self.client.get_run(run_id).outputs
        if not outputs or model_id not in [output.model_id for output in outputs.model_outputs]:
            self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
        return model_id

    def _store(self, path: Path, model: Any, run_id: str) -> None:
        """Put the model's files where its artifacts are; on this machine the checkpoint is linked."""
        address = urlsplit(model.artifact_location)
        with TemporaryDirectory(dir=path.parent) as scratch:
            folder = Path(scratch, "model")
            write_model(path, folder, model.model_id, run_id)
            if address.scheme not in ("", "file"):
                self.client.log_model_artifacts(model.model_id, str(folder))
                return
            for file in folder.rglob("*"):
                if file.is_file():
                    target = Path(unquote(address.path)) / file.relative_to(folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(file, target)
