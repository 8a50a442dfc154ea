"""MLflow's database appears whole or not at all."""

from pathlib import Path

import pytest

from knee_siglip.tracking.mlflow_models import create_database


def test_a_database_whose_creation_was_killed_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    class Client:
        written = "half"

        def __init__(self, tracking_uri: str, registry_uri: str) -> None:
            self.path = Path(tracking_uri.removeprefix("sqlite:///"))
            assert tracking_uri == registry_uri

        def search_experiments(self, max_results: int) -> None:
            assert max_results
            self.path.write_text(self.written)
            if self.written == "half":
                raise Killed

    monkeypatch.setattr("mlflow.tracking.MlflowClient", Client)
    database = tmp_path / "mlflow.db"
    with pytest.raises(Killed):
        create_database(database)
    assert not database.exists()
    Client.written = "whole"
    create_database(database)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("mlflow.db", "whole")]
