import pytest
import torch
from torch import nn

from knee_siglip.training.ema import Ema


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def take_steps(net, ema, count, seed=1):
    """Stands in for an optimizer: random changes; returns all weights after each step."""
    generator = torch.Generator().manual_seed(seed)
    path = []
    for _ in range(count):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        ema.update()
        path.append(flat(net))
    return path


def flat(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def averages(ema):
    return torch.cat([shadow.flatten() for shadow in ema.state_dict()["shadow"].values()])


def through_a_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


def test_average_is_the_formula_after_every_step():
    """Beyond step 80 the warm-up has ended: (1 + 80) / (10 + 80) = 0.9."""
    net = make_net()
    ema, expected = Ema(net, 0.9), flat(net)
    for t in range(100):
        (weights,) = take_steps(net, ema, 1, seed=t)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(averages(ema), expected, rtol=1e-12, atol=1e-14)


def test_the_random_start_is_forgotten_within_a_few_steps():
    """With a decay of 0.9999 alone a thousandth of the way would be gone after ten steps."""
    net = make_net()
    ema = Ema(net, 0.9999)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(1000.0)
    for _ in range(10):
        ema.update()
    assert (averages(ema) > 999.9).all()


def test_the_model_holds_the_average_inside_and_its_own_weights_afterwards():
    net = make_net()
    ema = Ema(net, 0.9)
    take_steps(net, ema, 5)
    own, average, places = flat(net), averages(ema), [parameter.data_ptr() for parameter in net.parameters()]
    with ema.applied():
        assert torch.equal(flat(net), average)
        assert [parameter.data_ptr() for parameter in net.parameters()] == places
    assert torch.equal(flat(net), own)
    assert torch.equal(averages(ema), average)


def test_an_error_inside_gives_the_weights_back_too():
    net = make_net()
    ema = Ema(net, 0.9)
    take_steps(net, ema, 5)
    own, average = flat(net), averages(ema)
    with pytest.raises(RuntimeError, match="validation failed"), ema.applied():
        raise RuntimeError("validation failed")
    assert torch.equal(flat(net), own)
    assert torch.equal(averages(ema), average)
    ema.update()


def test_a_restored_average_goes_on_as_the_uninterrupted_one(tmp_path):
    net = make_net()
    ema = Ema(net, 0.99)
    take_steps(net, ema, 7)
    saved = through_a_file({"net": net.state_dict(), "ema": ema.state_dict()}, tmp_path)
    take_steps(net, ema, 7, seed=2)
    again = make_net(seed=5)
    restored = Ema(again, 0.99)
    again.load_state_dict(saved["net"])
    restored.load_state_dict(saved["ema"])
    take_steps(again, restored, 7, seed=2)
    assert torch.equal(averages(restored), averages(ema))


def test_an_average_of_other_parameters_is_refused():
    net = make_net()
    state = Ema(net, 0.9).state_dict()
    net[0].requires_grad_(False)
    with pytest.raises(AssertionError, match="other parameters"):
        Ema(net, 0.9).load_state_dict(state)


def test_frozen_parameters_are_not_copied():
    net = make_net()
    net[0].requires_grad_(False)
    ema = Ema(net, 0.9)
    take_steps(net, ema, 3)
    assert list(ema.state_dict()["shadow"]) == ["1.weight", "1.bias"]
    frozen = net[0].weight.clone()
    with ema.applied():
        assert torch.equal(net[0].weight, frozen)


@pytest.mark.parametrize("misuse", ["update", "state_dict", "load_state_dict"])
def test_while_the_model_holds_the_average_it_is_neither_updated_nor_saved(misuse):
    ema = Ema(make_net(), 0.9)
    arguments = [ema.state_dict()] if misuse == "load_state_dict" else []
    with ema.applied(), pytest.raises(AssertionError, match="holds the average"):
        getattr(ema, misuse)(*arguments)


def test_the_average_is_not_applied_twice():
    """A second swap would put the own weights back, unseen."""
    ema = Ema(make_net(), 0.9)
    with ema.applied(), pytest.raises(AssertionError, match="holds the average already"), ema.applied():
        pass
