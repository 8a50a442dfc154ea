import dataclasses
import pickle

import numpy as np
import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from knee_siglip.params.sections import Params
from knee_siglip.tables.text import load_tokenizer


@pytest.fixture
def checkpoint(make_model):
    return Checkpoint(
        model=make_model().eval(),
        tokenizer=load_tokenizer(SMALL_FOLDER / "text"),
        transform=Transform(28, "pad", "local"),
        params=Params().to_dict(),
        metrics={"val.loss": 1.5},
        data_hash="abc",
    )


def test_a_checkpoint_carries_all_that_inference_needs(checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint, path)
    assert torch.load(path, weights_only=True)["format"] == "knee-siglip/1"
    loaded = load_checkpoint(path)
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    assert loaded.transform == checkpoint.transform
    assert loaded.params == checkpoint.params
    assert loaded.metrics == {"val.loss": 1.5}
    assert (
        loaded.tokenizer("severe osteoarthritis")["input_ids"]
        == checkpoint.tokenizer("severe osteoarthritis")["input_ids"]
    )
    assert not loaded.model.training
    pixels = torch.from_numpy(np.full((1, 28, 28), 99, dtype=np.uint8))
    assert torch.equal(loaded.model.normalise_pixels(pixels), checkpoint.model.normalise_pixels(pixels))


def test_the_same_model_is_written_to_the_same_bytes(checkpoint, tmp_path):
    """DVC tells a retrained model from an equal one by its hash."""
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).mkdir()
        save_checkpoint(dataclasses.replace(checkpoint), tmp_path / name / "model.pt")
    assert (tmp_path / "a.pt/model.pt").read_bytes() == (tmp_path / "b.pt/model.pt").read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_other(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint, path)
    before = path.read_bytes()

    def full(content, target):
        target.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space"):
        save_checkpoint(checkpoint, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


class Trap:
    """What a hostile pickle would run."""

    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b"PNG"), "not a knee-siglip checkpoint"),
        (lambda path: path.write_bytes(b""), "not a knee-siglip checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(Trap())), "not a knee-siglip checkpoint"),
        (lambda path: torch.save({"state_dict": {}}, path), "no format entry"),
        (lambda path: torch.save(torch.zeros(3), path), "found Tensor"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(tmp_path, capsys, write, sentence):
    path = tmp_path / "wrong.pt"
    write(path)
    with pytest.raises(UserError, match=sentence) as error:
        load_checkpoint(path)
    assert "wrong.pt" in str(error.value)
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_one_flipped_bit_is_refused(checkpoint, tmp_path, share):
    path = tmp_path / "best_model.pt"
    save_checkpoint(checkpoint, path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"best_model\.pt is damaged"):
        load_checkpoint(path)
