"""Several processes, told what torchrun tells them, train what one process trains.

torchrun itself starts them in tests/cli/test_train.py.
"""

import pytest
import torch
from torch.distributed import TCPStore

from knee_siglip.core.errors import UsageError
from knee_siglip.training import distributed
from knee_siglip.training.distributed import open_ranks
from ranks_at_work import work
from training_process import CONTEXT


def results_of(size, folder):
    """What `size` processes found; they meet at a store of this process, as torchrun's do."""
    out, told = folder / "found.pt", [folder / f"told_{rank}.txt" for rank in range(size)]
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    places = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)] if size > 1 else [{}]
    ranks = [
        CONTEXT.Process(target=work, args=(out, file, place), daemon=True)
        for file, place in zip(told, places, strict=True)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    codes = [process.exitcode for process in ranks]
    assert codes == [0] * size, "\n".join(file.read_text()[-4000:] for file in told)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return results_of(1, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=[2, 3])
def together(request, tmp_path_factory):
    found = results_of(request.param, tmp_path_factory.mktemp("together"))
    assert found["size"] == request.param
    return found


def assert_equal(found, expected, tolerance=1e-10):
    for name, gradient in expected.items():
        # softmax does not feel a constant added to all keys: this gradient is zero but for rounding
        if not name.endswith("k_proj.bias"):
            assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_gradients_equal_those_of_one_process_for_every_parameter(alone, together):
    groups = [key for key in alone if key[0] in (23, 1, "float32")]
    assert len(groups) == 14
    for key in groups:
        assert_equal(together[key], alone[key], 1e-5 if key[0] == "float32" else 1e-10)


def test_where_one_rank_runs_out_of_memory_all_repeat_the_step_and_gradients_are_exact(alone, together):
    groups = [key for key in alone if key[0] == "full"]
    assert len(groups) == 5
    for key in groups:
        undisturbed = alone[23, key[1], "ring", True]
        assert_equal(alone[key], undisturbed)
        assert_equal(together[key], undisturbed)


@pytest.mark.parametrize("training", ["training", "adapters"])
def test_training_ends_with_the_same_weights_and_metrics(alone, together, training):
    expected, found = alone[training], together[training]
    for name, weight in expected["weights"].items():
        if not name.endswith(("k_proj.bias", "k_proj.base_layer.bias")):
            assert (found["weights"][name] - weight).norm() <= 1e-8 * weight.norm(), name
    assert found["best_epoch"] == expected["best_epoch"]
    for ours, theirs in zip(found["epochs"], expected["epochs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def test_a_flag_of_one_process_reaches_all_and_rows_come_together_in_order(together):
    assert together["flags"] == [True, True, False]
    assert together["rows"].flatten().tolist() == list(range(7))


def test_a_state_that_the_first_process_has_read_reaches_all(alone, together):
    for found in (alone, together):
        assert found["no state"] is None
        assert found["state"]["step"] == 3
        assert found["state"]["none"][0] is None
        assert found["state"]["none"][1].shape == (0,)
        assert torch.equal(found["state"]["layers"][0], torch.arange(6.0).reshape(2, 3).T)
        assert found["state"]["layers"][1].item() is True


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(distributed, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"process 2 .* has no GPU: there are 2"), open_ranks():
        pass
    monkeypatch.setattr(distributed, "pick_device", torch.device)
    with pytest.raises(UsageError, match="several processes take one GPU each"), open_ranks("cuda:1"):
        pass
