"""A packed checkpoint as MLflow's users ask it: `mlflow models serve` over HTTP, with the code inside the model."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from knee_siglip.core.errors import UserError
from knee_siglip.inference.predictor import Predictor
from knee_siglip.serve.reference import EMBEDDING, check_reference, write_reference
from knee_siglip.tracking.packaging import write_model

QUERIES = ["severe osteoarthritis of knee joint", "normal knee joint"]


@pytest.fixture
def packed(checkpoint_path: Path, tmp_path: Path) -> Path:
    """An MLflow model's folder."""
    write_model(checkpoint_path, checkpoint_path.parent / "model", "m-1", "r-1")
    return (checkpoint_path.parent / "model").rename(tmp_path / "elsewhere")


@pytest.fixture
def address(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server that answers, without a way to any other machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("mlflow"), "models", "serve", "--model-uri", packed]
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | nowhere
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield _wait_for(f"127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen) -> str:
    while server.poll() is None:
        try:
            HTTPConnection(address).request("GET", "/ping")
        except ConnectionError:
            time.sleep(0.1)
        else:
            return address
    raise AssertionError("the server ended")


def _ask(address: str, rows: list[dict]) -> list[dict]:
    connection = HTTPConnection(address)
    body = json.dumps({"dataframe_records": rows})
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.load(response)
    assert response.status == 200, answer
    return answer["predictions"]


def test_a_server_answers_as_infer_does(address, checkpoint_path, tmp_path, knee_siglip, save_dicom):
    png, dicom = tmp_path / "knee.png", save_dicom(np.arange(4096, dtype=np.uint16).reshape(64, 64))
    Image.linear_gradient("L").save(png)
    encoded = {"image": base64.b64encode(dicom.read_bytes()).decode()}
    rows = [{"image_path": str(png)}, encoded, {"image_path": str(tmp_path / "gone.png")}]
    by_path, by_bytes, gone = _ask(address, [row | {"queries": QUERIES} for row in rows])
    for file, answer in ((png, by_path), (dicom, by_bytes)):
        options = [option for query in QUERIES for option in ("--query", query)]
        code, out, _ = knee_siglip("infer", "--model_path", checkpoint_path, "--image_path", file, "--json", *options)
        assert code == 0
        expected = json.loads(out)
        found = {ranked["query"]: ranked for ranked in expected["queries"]}
        assert (answer["status"], answer["cautions"]) == ("ok", expected["cautions"])
        for name, values in (("similarity", "similarities"), ("probability", "probabilities")):
            assert answer[values] == pytest.approx([found[query][name] for query in QUERIES], abs=1e-5)
    assert gone["status"].endswith("gone.png: no such file")
    assert gone["similarities"] is None
    (default,) = _ask(address, [encoded])
    assert len(default["queries"]) == len(default["similarities"]) == 10


def test_rows_are_answered_in_their_order_and_wrong_ones_say_so(packed):
    model = mlflow.pyfunc.load_model(str(packed), model_config={"device": "cpu"})
    example = base64.b64decode(model.input_example["image"][0])
    rows = [
        {"image": example, "queries": QUERIES},
        {"image": b"no image", "queries": QUERIES[:1]},
        {"image": base64.b64encode(example).decode(), "queries": QUERIES[::-1]},
        {"queries": QUERIES},
        {"image": example, "queries": [""]},
    ]
    answers = model.predict(pd.DataFrame(rows))
    assert answers["cautions"][0][0] == "not for clinical use"
    assert answers["cautions"][1] is None
    assert answers["status"].tolist()[:3:2] == ["ok", "ok"]
    assert answers["similarities"][0] == pytest.approx(answers["similarities"][2][::-1])
    assert "no image of a known format" in answers["status"][1]
    assert answers["status"][3].startswith("give either image")
    assert answers["status"][4].startswith("a query is empty")
    with pytest.raises(MlflowException, match="no row has image or image_path"):
        model.predict(pd.DataFrame([{"img": "a.png"}]))


def test_a_model_that_embeds_its_reference_otherwise_is_not_loaded(packed, checkpoint_path):
    folder = packed / "artifacts"
    write_reference(Predictor(checkpoint_path, device="cpu"), folder)
    mlflow.pyfunc.load_model(str(packed))
    kept = json.loads((folder / EMBEDDING).read_text())
    kept["embedding"][0] += 0.01
    (folder / EMBEDDING).write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"made with torch .*: install those"):
        check_reference(Predictor(checkpoint_path, device="cpu"), folder)
