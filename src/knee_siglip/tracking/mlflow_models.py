"""A connection to MLflow, and checkpoints as its LoggedModels."""

import logging
import os
import uuid
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from knee_siglip.core.files import PARTIAL, link_or_copy, lock
from knee_siglip.tracking.packaging import write_model

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the sender tries again itself, and looks first for what has arrived
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds; with MLflow's defaults one call to a dead server blocks for 246 s
}
"""What MLflow is told, where the user has not set it otherwise."""

SECONDS_FOR_LOCK = 60.0  # creating the database takes 7-9 s on two cores


def import_mlflow() -> None:
    """Import the client as we want it; seconds, on a busy machine half a minute, for which no server is to blame."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    import_module("mlflow.tracking")


def connect(uri: str, project: str, artifacts: str | None) -> tuple[Any, str]:
    """An `MlflowClient`, and the id of the project's experiment, which is made where there is none.

    artifacts: folder for the files of a new experiment; MLflow would take the working folder for good.
    """
    import_mlflow()
    from mlflow.tracking import MlflowClient

    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    # two processes that create one database, or experiment, at once crash each other; servers handle that
    made_alone = lock(Path(f"{database}.lock"), f"creating {database}", wait=SECONDS_FOR_LOCK)
    with made_alone if database else nullcontext():
        if database and not database.exists():
            create_database(database)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if own := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return client, own
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project
        experiment = client.get_experiment_by_name(project)
        known = experiment.experiment_id if experiment else client.create_experiment(project, artifacts)
    return client, str(known)


def create_database(database: Path) -> None:
    """Make an SQLite database beside its place, then rename it.

    MLflow migrates it from version to version, which takes seconds; one that was killed meanwhile would be broken for
    good.
    """
    from mlflow.tracking import MlflowClient

    for left in database.parent.glob(f"{database.name}.*{PARTIAL}"):
        left.unlink(missing_ok=True)
    partial = database.with_name(f"{database.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    made = f"sqlite:///{partial}"
    MlflowClient(tracking_uri=made, registry_uri=made).search_experiments(max_results=1)
    partial.replace(database)


class LoggedModels:
    """Those of one experiment; client: an `MlflowClient`."""

    def __init__(self, client: Any, experiment: str) -> None:
        self.client = client
        self.experiment = experiment

    def find(self, sha256: str, name: str = "", run_id: str | None = None) -> Any:
        """The LoggedModel of the checkpoint with this hash, of that name and run where they are given; else None.

        Of several the oldest: best_model, where the final model is the same.
        """
        wanted = {"tags.sha256": sha256, "name": name, "source_run_id": run_id}
        query = " AND ".join(f"{key} = '{value}'" for key, value in wanted.items() if value)
        oldest = [{"field_name": "creation_timestamp", "ascending": True}]
        found = self.client.search_logged_models([self.experiment], query, max_results=1, order_by=oldest)
        return found[0] if found else None

    def log(self, path: Path, tags: dict[str, str], copied: bool, run_id: str | None = None, step: int = 0) -> Any:
        """Log a checkpoint as an output of the run, or of none. A second attempt goes on where the first one ended.

        copied: with its files, which MLflow loads; else the tags say how to get and to know the file.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        model = self.find(tags["sha256"], path.stem, run_id) or self.client.create_logged_model(
            self.experiment, path.stem, run_id, tags, model_type="image-text"
        )
        is_ready = model.status == LoggedModelStatus.READY
        if copied and not (is_ready and self.client.list_logged_model_artifacts(model.model_id)):
            self._store(path, model, run_id or "")
        if not is_ready:
            self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        outputs = self.client.get_run(run_id).outputs if run_id else None
        if run_id and (not outputs or model.model_id not in [output.model_id for output in outputs.model_outputs]):
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return model

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
