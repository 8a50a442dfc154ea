"""What leaves this machine: kinds of artifacts by `tracking.send`, and params that name places."""

import re
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

Level = Literal["metrics", "metrics_and_reports", "all"]

KINDS: dict[Level, list[str]] = {
    "metrics": [],
    "metrics_and_reports": ["report"],
    "all": ["report", "patients", "model"],
}
"""Of artifacts. report: tables and charts of groups. patients: a row or a picture of each image. model: checkpoints."""

SAID: dict[Level, str] = {
    "metrics": "figures and params",
    "metrics_and_reports": "figures, params, tables and charts of groups",
    "all": "figures, params, tables, pictures and texts of single patients, and the model",
}

PLACES = ("data.csv", "data.images", "data.external", "data.patient_id_pattern", "infer.csv_path", "train.init_from")
ENCODERS = ("model.vision", "model.text")
NOT_SENT = "(not sent)"


def without_password(text: str) -> str:
    """A text with the passwords of its URIs hidden."""
    return re.sub(r"//[^/\s@]+@", "//***@", text)


def is_remote(uri: str) -> bool:
    """Whether what goes to an MLflow tracking URI leaves this machine: a server does, on loopback too."""
    return urlsplit(uri).scheme not in ("sqlite", "file", "") or uri.startswith("databricks")


def level_for(asked: str, remote: bool) -> Level:
    """The level that `tracking.send` stands for: `auto` is `metrics` for a remote tracker, else `all`."""
    if asked == "auto":
        return "metrics" if remote else "all"
    return asked  # type: ignore[return-value]


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Params without the paths among them, which may name a patient or a hospital."""
    hidden = {key for key in PLACES if config.get(key)}
    hidden |= {key for key in ENCODERS if str(config.get(key, "")).startswith(("/", ".", "~"))}
    return {key: NOT_SENT if key in hidden else value for key, value in config.items()}
