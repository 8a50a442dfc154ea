"""CUDA graphs need a GPU (`benchmarks/gpu_all.py` records them on one). Here `record` is replaced: its stand-in repeats
the function on fixed inputs and writes over the earlier results, as a graph's kernels do."""

import logging
from dataclasses import replace

import pytest
import torch

from knee_siglip.params.sections import AugmentParams
from knee_siglip.training import graphs
from knee_siglip.training.accumulation import GradientCache
from knee_siglip.training.distributed import Ranks
from knee_siglip.training.encoder import PairEncoder, pad_texts
from knee_siglip.training.graphs import MOST_GRAPHS, SIGHTINGS, Graphs, Recorded
from toys import local_batch, toy_model, toy_pairs


def stand_in(function, inputs, parameters, state):
    fixed = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
    of = [tensor for tensor in (*fixed, *parameters) if tensor.requires_grad]
    live = []

    def differentiate(output_grads):
        made = [output for output in live if output.requires_grad]
        return torch.autograd.grad(made, of, output_grads, allow_unused=True)

    @torch.enable_grad()
    def forward():
        live[:] = function(*fixed)
        for output, made in zip(outputs, live, strict=True):
            output.copy_(made.detach())

    def backward():
        found = iter(differentiate([grad for grad in output_grads if grad is not None]))
        for grad, tensor in zip(grads, (*fixed, *parameters), strict=True):
            value = next(found) if tensor.requires_grad else None
            if grad is not None:
                grad.copy_(value)

    live[:] = function(*fixed)
    outputs = tuple(torch.full_like(output, torch.nan) for output in live)
    output_grads = [torch.zeros_like(output) if output.requires_grad else None for output in live]
    found = iter(differentiate([grad for grad in output_grads if grad is not None]))
    grads = [next(found) if tensor.requires_grad else None for tensor in (*fixed, *parameters)]
    return Recorded(fixed, outputs, output_grads, grads, forward, backward, state())


@pytest.fixture
def recorded(monkeypatch):
    """Shapes of what was recorded."""
    shapes = []

    def record(function, inputs, *rest):
        shapes.append([tuple(tensor.shape) for tensor in inputs])
        return stand_in(function, inputs, *rest)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "_has_room", lambda: True)
    return shapes


def scaled(values, factor):
    return values * factor, values.detach().sum()


def test_shapes_are_recorded_when_they_come_for_the_third_time(recorded):
    call = Graphs(scaled, [], is_on=True)
    for number in range(1, SIGHTINGS + 3):
        factor = torch.tensor(float(number), requires_grad=True)
        values = torch.full((4,), 2.0 * number)
        product, total = call(values, factor)
        product.sum().backward()
        assert product.tolist() == [2.0 * number**2] * 4
        assert total == 8 * number
        assert not total.requires_grad
        assert factor.grad == total
        assert len(recorded) == (number >= SIGHTINGS)
    assert recorded == [[(4,), ()]]
    assert len(call) == 1


def test_results_are_not_overwritten_by_the_next_call(recorded):
    call = Graphs(scaled, [], is_on=True)
    factor = torch.tensor(1.0, requires_grad=True)
    results = [call(torch.full((2,), float(number)), factor)[0].detach() for number in range(6)]
    assert [result.tolist() for result in results] == [[number] * 2 for number in range(6)]


def test_other_shapes_are_launched_one_by_one_once_there_are_enough(recorded):
    call = Graphs(scaled, [], is_on=True)
    factor = torch.tensor(1.0, requires_grad=True)
    for length in range(1, MOST_GRAPHS + 3):
        for _ in range(SIGHTINGS + 1):
            assert call(torch.ones(length), factor)[0].tolist() == [1] * length
    assert [shapes[0] for shapes in recorded] == [(length,) for length in range(1, MOST_GRAPHS + 1)]


@pytest.mark.parametrize("cause", ["off", "no gradients", "no room"])
def test_nothing_is_recorded(recorded, monkeypatch, cause):
    asked = []
    monkeypatch.setattr(graphs, "_has_room", lambda: bool(asked.append(1)))
    call = Graphs(scaled, [], is_on=cause != "off")
    for _ in range(SIGHTINGS + 3):
        with torch.set_grad_enabled(cause != "no gradients"):
            call(torch.ones(2), torch.tensor(1.0, requires_grad=True))
    assert not recorded
    # what is asked empties the allocator's cache
    assert len(asked) == (cause == "no room")


def test_what_cannot_be_recorded_is_launched_one_by_one_with_one_warning(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "record", refuse)
    monkeypatch.setattr(graphs, "_has_room", lambda: True)
    call = Graphs(scaled, [], is_on=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2 * SIGHTINGS):
            assert call(torch.ones(2), torch.tensor(3.0))[0].tolist() == [3, 3]
    assert [record.message for record in caplog.records] == [
        "no CUDA graph could be recorded (operation not permitted when stream is capturing): kernels are launched one "
        "by one"
    ]


@pytest.mark.parametrize("options", [{}, {"dropout": 0.2, "drop_path": 0.3}])
def test_recorded_steps_have_the_gradients_of_others(recorded, options):
    pairs = toy_pairs(count=16, distinct=5)

    def gradients_of(is_on):
        model = toy_model(**options).double().train()
        encoder = PairEncoder(model, None, AugmentParams())
        cache = GradientCache(encoder, Ranks(), 16, graphs=is_on)
        found = []
        for step in range(SIGHTINGS + 2):
            model.zero_grad(set_to_none=True)
            encoded = cache.encode(local_batch(pairs, step=step))
            encoded.image_embeds.grad = encoded.image_embeds.detach().cos()
            encoded.text_embeds.grad = encoded.text_embeds.detach().sin()
            cache.backward(encoded)
            found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return found

    plain = gradients_of(False)
    assert not recorded
    by_graphs = gradients_of(True)
    assert recorded == [[(16, 28, 28), (6, 8), (16,), (16,), (6,)]]
    for one, other in zip(plain, by_graphs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name])


def test_graphs_end_when_memory_is_full(recorded):
    model = toy_model().train()
    cache = GradientCache(PairEncoder(model, None, AugmentParams()), Ranks(), 16, graphs=True)
    pairs = toy_pairs(count=16)
    for step in range(SIGHTINGS):
        cache.encode(local_batch(pairs, step=step))
    assert len(cache.graphs) == 1

    def refuse():
        raise torch.OutOfMemoryError("CUDA out of memory")

    cache.graphs._recorded = {key: replace(kept, forward=refuse) for key, kept in cache.graphs._recorded.items()}
    encoded = cache.encode(local_batch(pairs))
    assert (len(cache.graphs), cache.graphs.is_on, cache.micro_batch_size, encoded.graph) == (0, False, 8, None)


@pytest.mark.parametrize(("distinct", "padded"), [(1, 8), (8, 8), (9, 16), (64, 64)])
def test_few_numbers_of_texts_occur(distinct, padded):
    ids, places = torch.arange(2, 2 + distinct).unsqueeze(1), torch.arange(64) % distinct
    pixels, keys, text_keys = torch.zeros(64, 2, 2), torch.arange(64), torch.arange(distinct)
    found = pad_texts(pixels, ids, places, keys, text_keys)
    assert found[0] is pixels
    assert found[2:4] == (places, keys)
    assert len(found[1]) == len(found[4]) == padded
    assert torch.equal(found[1][:distinct], ids)
    assert torch.equal(found[4][:distinct], text_keys)
    assert set(found[1][distinct:].flatten().tolist()) <= {2}
