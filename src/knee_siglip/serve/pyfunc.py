"""A checkpoint behind MLflow: `mlflow.pyfunc.load_model`, `mlflow models serve`. MLflow loads a model by this file.

Rows in: `image` (the bytes of a PNG, JPEG, TIFF or DICOM file; base64 in JSON) or `image_path`, and `queries`, by
default the task's. Rows out: see `ANSWER`. A row whose image cannot be read says so in `status`, as in batch inference.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

# torch is imported when a model is loaded: whoever only packs a checkpoint runs this file too.
if TYPE_CHECKING:
    from knee_siglip.inference.predictor import Prediction
    from knee_siglip.serve.model import KneeModel

IMAGES_AT_ONCE = 64


class ServedModel(PythonModel):
    """Answers rows with a `KneeModel`. `model_config` has its `device` and `precision`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint; where a release left a reference, check that this installation still agrees with it."""
        from knee_siglip.serve.model import load
        from knee_siglip.serve.reference import check_reference

        path = Path(context.artifacts["checkpoint"])
        config = context.model_config or {}
        self.model: KneeModel = load(path, device=config["device"], precision=config["precision"])
        check_reference(self.model.predictor, path.parent)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One answer a row; rows with the same queries are embedded together.

        Raises:
            MlflowException: there is no column that the signature names; MLflow drops all others, and the rows too.
        """
        from knee_siglip.core.errors import UsageError

        if not len(model_input.columns):
            raise MlflowException.invalid_parameter_value("no row has image or image_path")
        rows = model_input.to_dict("records")
        answers: list[dict[str, Any]] = [{} for _ in rows]
        asked: dict[tuple[str, ...], list[int]] = {}
        for number, row in enumerate(rows):
            try:
                asked.setdefault(self._queries(row), []).append(number)
            except UsageError as error:
                answers[number] = _answer(str(error), (), None)
        for queries, numbers in asked.items():
            for first in range(0, len(numbers), IMAGES_AT_ONCE):
                part = numbers[first : first + IMAGES_AT_ONCE]
                for number, answer in zip(part, self._answers([rows[i] for i in part], queries), strict=True):
                    answers[number] = answer
        return pd.DataFrame(answers)

    def _queries(self, row: dict[Any, Any]) -> tuple[str, ...]:
        from knee_siglip.inference.predictor import distinct_queries

        given = row.get("queries")
        queries = self.model.predictor.task.queries if given is None or isinstance(given, float) else given
        return tuple(distinct_queries(list(queries)))

    def _answers(self, rows: Sequence[dict[Any, Any]], queries: tuple[str, ...]) -> list[dict[str, Any]]:
        from knee_siglip.imaging.decode.read import ImageError

        images: list[Any] = []
        statuses = []
        for row in rows:
            try:
                images.append(_grey(row))
                statuses.append("ok")
            except ImageError as error:
                statuses.append(str(error))
        predictions = iter(self.model.predict(images, queries))
        return [_answer(status, queries, next(predictions) if status == "ok" else None) for status in statuses]


def _grey(row: dict[Any, Any]) -> Any:
    """uint8 (H, W) of the row's image."""
    from knee_siglip.imaging.decode.read import ImageError, decode, read_bytes

    image: Any = row.get("image")
    path = row.get("image_path")
    if isinstance(path, str) == isinstance(image, (bytes, bytearray, str)):
        raise ImageError("give either image (the file's bytes, in JSON as base64) or image_path")
    if isinstance(path, str):
        return decode(read_bytes(Path(path)), Path(path)).grey
    if isinstance(image, str):
        try:
            image = base64.b64decode(image, validate=True)
        except binascii.Error as error:
            raise ImageError(f"image is no base64: {error}") from None
    return decode(bytes(image), Path("image")).grey


def _answer(status: str, queries: tuple[str, ...], prediction: "Prediction | None") -> dict[str, Any]:
    """A row of the output, its lists in the order of the queries and of the labels."""
    if prediction is None:
        return {"status": status, "queries": list(queries), **dict.fromkeys(ANSWER)}
    found = {ranked.query: ranked for ranked in prediction.ranking}
    return {
        "status": status,
        "queries": list(queries),
        "similarities": [found[query].similarity for query in queries],
        "probabilities": [found[query].probability for query in queries],
        "label": None if prediction.label is None else str(prediction.label),
        "labels": [str(value) for value in prediction.labels.values],
        "label_probabilities": list(prediction.probabilities),
        "distance_to_training": prediction.distance,
        "cautions": list(prediction.cautions),
    }


ANSWER = (
    *("similarities", "probabilities", "label", "labels", "label_probabilities"),
    *("distance_to_training", "cautions"),
)
"""Columns that only a readable image has: of the queries, and as in a `Prediction`."""

set_model(ServedModel())
