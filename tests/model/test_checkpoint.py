import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch

from knee_siglip.core.errors import UserError
from knee_siglip.encoders.backbones import SMALL_FOLDER
from knee_siglip.encoders.blocks import Attention
from knee_siglip.imaging.fit.transform import Transform
from knee_siglip.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from knee_siglip.model.training_facts import Likeness, TrainingFacts
from knee_siglip.params.files import parse_params
from knee_siglip.tables.text import load_tokenizer
from toys import POSITIONS


@pytest.fixture
def checkpoint(make_model):
    tokenizer = load_tokenizer(SMALL_FOLDER / "text")
    return Checkpoint(
        model=make_model(vocabulary=len(tokenizer)).eval(),
        tokenizer=tokenizer,
        transform=Transform(28, "pad", "local"),
        params=parse_params({"model": {"max_text_length": POSITIONS}}).to_dict(),
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


FACTS = TrainingFacts(
    rows=5, drawn_rows=5, patients=3, verdict="learned", signs=[], temperature=0.5, calibrated_on=40, prompts="0" * 64
)


def test_what_answers_need_is_kept_and_crafted_parts_are_refused(checkpoint, tmp_path):
    path, width = tmp_path / "model.pt", checkpoint.model.text.width
    likeness = Likeness(np.arange(width) / 8, np.eye(width), 2.0)
    save_checkpoint(dataclasses.replace(checkpoint, facts=FACTS, likeness=likeness), path)
    loaded = load_checkpoint(path)
    assert (loaded.facts, loaded.likeness.limit) == (FACTS, 2.0)
    assert np.array_equal(loaded.likeness.mean, likeness.mean)
    content = torch.load(path, weights_only=True)
    for part, said in (
        ({"training_facts": FACTS.model_dump() | {"temperature": 0.0}}, "temperature of its training_facts"),
        ({"training_facts": FACTS.model_dump() | {"signs": ["\x1b[31m"]}}, "signs.0 of its training_facts"),
        ({"likeness": likeness.to_dict() | {"mean": torch.zeros(1)}}, "mean of its likeness"),
        ({"likeness": 3}, "likeness"),
    ):
        torch.save(content | part, path)
        with pytest.raises(UserError, match=said):
            load_checkpoint(path)


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
        (os.mkfifo, "is no file"),
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


def _drop_a_weight(content):
    del content["weights"]["visual_projection.bias"]


def _bend_a_weight(content):
    content["weights"]["visual_projection.bias"] = torch.zeros(3)


def _name_a_folder_above(content):
    content["tokenizer"][".."] = torch.zeros(3, dtype=torch.uint8)


def _bytes_of_floats(content):
    content["tokenizer"]["x.json"] = torch.zeros(3)


def _change_weight(change):
    def apply(content):
        content["weights"]["visual_projection.bias"] = change(content["weights"]["visual_projection.bias"])

    return apply


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_change_weight(torch.Tensor.to_sparse), "visual_projection.bias has shape None for"),
        (_change_weight(lambda weight: weight.to(torch.complex64)), "visual_projection.bias has shape None for"),
        (_change_weight(lambda weight: weight.to("meta")), "visual_projection.bias has shape None for"),
        (_change_weight(torch.Tensor.tolist), "visual_projection.bias has shape None for"),
        (_drop_a_weight, "config and weights do not fit: visual_projection.bias has shape None for"),
        (_bend_a_weight, r"visual_projection.bias has shape \(3,\) for"),
        (_name_a_folder_above, "its tokenizer has a file named '..'"),
        (_bytes_of_floats, "the file x.json of its tokenizer holds no bytes"),
        (lambda content: content.pop("config"), "its part config is missing"),
        (lambda content: content.update(weights=3), "its part weights is missing or no dict"),
        (lambda content: content["config"].update(vision_config={"model_type": "x"}), "its config builds no model"),
        (lambda content: content["config"].update(image_std=[0.0, 1.0, 1.0]), "image_std above 0"),
        (lambda content: content["transform"].update(contrast="vivid"), "contrast = 'vivid' of its transform"),
        (lambda content: content["transform"].update(image_size=8960), "image_size = 8960 .* up to 4096"),
        (lambda content: content["transform"].update(image_size=30), "image_size = 30 .* multiple of 14"),
        (lambda content: content["params"]["model"].update(max_text_length="auto"), "max_text_length = 'auto'"),
        (lambda content: content["tokenizer"].clear(), "it holds no tokenizer"),
    ],
)
def test_a_crafted_checkpoint_is_one_sentence_that_names_file_and_part(checkpoint, tmp_path, change, sentence):
    path = tmp_path / "crafted.pt"
    save_checkpoint(checkpoint, path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=sentence) as error:
        load_checkpoint(path)
    assert "crafted.pt" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_checkpoint_does_not_choose_the_attention_code(checkpoint, tmp_path):
    """transformers would load a name such as `someone/kernel` from the hub."""
    path = tmp_path / "crafted.pt"
    save_checkpoint(checkpoint, path)
    content = torch.load(path, weights_only=True)
    for config in (content["config"], content["config"]["vision_config"], content["config"]["text_config"]):
        config["_attn_implementation"] = config["attn_implementation"] = "someone/kernel"
    torch.save(content, path)
    model = load_checkpoint(path).model
    used = {module.implementation for module in model.modules() if isinstance(module, Attention)}
    assert used == {"sdpa"}
