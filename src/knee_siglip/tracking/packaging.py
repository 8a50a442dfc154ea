"""A checkpoint as MLflow loads it: `mlflow.pyfunc.load_model`, `mlflow models serve`, without a network.

The folder holds the checkpoint (linked, not copied), this package's code, so that the model answers as it did when it
was logged, pinned requirements, the signature and an example. `serve/pyfunc.py` is what MLflow runs.
"""

import base64
import io
import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from knee_siglip.core.files import link_or_copy

PACKAGE = Path(__file__).parents[1]
ENTRY = PACKAGE / "serve" / "pyfunc.py"
CODE = ("*.py", "py.typed")

REQUIREMENTS = (
    "kornia_rs",
    "matplotlib",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "platformdirs",
    "pyarrow",
    "pydantic",
    "pydicom",
    "pyjpegls",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "protobuf",
    "regex",
    "ruamel.yaml",
    "safetensors",
    "scipy",
    "sentencepiece",
    "torch",
    "transformers",
)
"""What loading a checkpoint and reading an image import."""

CONFIG = {"device": "auto", "precision": "auto"}
"""Overridden by `mlflow.pyfunc.load_model(uri, model_config=...)`."""


def write_model(checkpoint: Path, folder: Path, model_id: str, run_id: str) -> None:
    """Write an MLflow model into a new folder beside the checkpoint; neither torch nor a network is needed."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    with TemporaryDirectory(dir=folder.parent) as scratch:
        stand_in = Path(scratch, checkpoint.name)  # MLflow would copy the checkpoint twice
        stand_in.touch()
        save_model(
            path=str(folder),
            python_model=str(ENTRY),
            artifacts={"checkpoint": str(stand_in)},
            code_paths=[_copy_code(Path(scratch))],
            model_config=CONFIG,
            # as an index has them: `2.13.0+cpu` is the CPU's build of 2.13.0
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
            signature=_signature(),
            input_example=_example(),
            mlflow_model=Model(model_id=model_id, run_id=run_id),
        )
    link_or_copy(checkpoint, folder / "artifacts" / checkpoint.name)
    model = Model.load(str(folder))
    flavor = model.flavors["python_function"]  # names, not places on this machine
    flavor["artifacts"]["checkpoint"]["uri"], flavor["model_code_path"] = checkpoint.name, ENTRY.name
    model.model_size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    model.save(str(folder / "MLmodel"))


def _copy_code(folder: Path) -> str:
    """This package's modules without the small encoders' weights, which a checkpoint replaces."""
    target = folder / PACKAGE.name
    for pattern in CODE:
        for file in PACKAGE.rglob(pattern):
            copy = target / file.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    return str(target)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    texts, numbers = Array(DataType.string), Array(DataType.double)
    inputs: list[Any] = [
        ColSpec(AnyType(), "image", required=False),  # MLflow's server cannot have a row without a binary value
        ColSpec(DataType.string, "image_path", required=False),
        ColSpec(texts, "queries", required=False),
    ]
    outputs: list[Any] = [
        ColSpec(DataType.string, "status"),
        ColSpec(texts, "queries"),
        ColSpec(numbers, "similarities", required=False),
        ColSpec(numbers, "probabilities", required=False),
        ColSpec(DataType.string, "label", required=False),
        ColSpec(texts, "labels", required=False),
        ColSpec(numbers, "label_probabilities", required=False),
        ColSpec(DataType.double, "distance_to_training", required=False),
        ColSpec(texts, "cautions", required=False),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _example() -> Any:
    """A row with a grey wedge for a radiograph: no patient's image goes along."""
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(buffer, "PNG")
    queries = ["Normal knee", "Severe osteoarthritis of the knee"]
    return pd.DataFrame({"image": [base64.b64encode(buffer.getvalue()).decode()], "queries": [queries]})
