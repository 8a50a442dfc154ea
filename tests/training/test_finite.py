import json
import logging
import math

import numpy as np
import pytest
import torch
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode

from knee_siglip.core.errors import UserError
from knee_siglip.training import finite
from knee_siglip.training.finite import FiniteGuard

NAN, INF = math.nan, math.inf
ROWS = np.arange(10, 16)


def make_guard(max_skipped=3, dump=None):
    return FiniteGuard(max_skipped, dump, lambda rows: [{"row": int(row), "img_path": f"{row}.png"} for row in rows])


def record(guard, step, loss, norm=1.0, rows=ROWS, loss_scale=None):
    loss, norm = torch.tensor(loss), torch.tensor(norm)
    scale = None if loss_scale is None else torch.tensor(loss_scale)
    guard.record(step, rows, loss, torch.tensor(0.5), norm, guard.check(loss, norm), scale)


def take_step(optimizer, loss=1.0, norm=1.0, gradient=1.0):
    """As the class's docstring has it; returns all that the optimizer holds."""
    weights = optimizer.param_groups[0]["params"]
    for weight in weights:
        weight.grad = torch.full_like(weight, gradient)
    optimizer.found_inf = FiniteGuard.check(torch.tensor(loss), torch.tensor(norm))
    optimizer.step()
    return [tensor.clone() for weight in weights for tensor in (weight.detach(), *optimizer.state[weight].values())]


@pytest.fixture
def make_optimizer():
    def make():
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]
        return AdamW(weights, lr=0.1, weight_decay=0.1, fused=True)

    return make


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (INF, 1.0), (-INF, 1.0), (1.0, NAN), (1.0, INF)])
def test_a_step_that_is_not_finite_changes_no_weight_no_moment_and_no_count(make_optimizer, loss, norm):
    optimizer = make_optimizer()
    before = take_step(optimizer)
    after = take_step(optimizer, loss, norm, gradient=NAN)
    assert len(before) == 2 * 4  # weight, step count and two moments of both
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_finite_steps_are_those_of_a_run_without_the_skipped_one(make_optimizer):
    optimizer, plain = make_optimizer(), make_optimizer()
    first = take_step(optimizer)
    take_step(optimizer, NAN, gradient=NAN)
    last = take_step(optimizer, gradient=2.0)
    take_step(plain)
    expected = take_step(plain, gradient=2.0)
    assert not torch.equal(first[0], last[0])
    assert all(torch.equal(a, b) for a, b in zip(last, expected, strict=True))


def test_checking_and_recording_read_nothing_from_the_device():
    """A meta tensor has no value: whoever asks for it gets an error."""
    loss, accuracy, norm = (torch.empty((), device="meta") for _ in range(3))
    guard = make_guard()
    guard.record(0, ROWS, loss, accuracy, norm, guard.check(loss, norm))


class Transfers(TorchFunctionMode):
    """Counts what makes the host wait for the device."""

    NAMES = ("tolist", "item", "numpy", "cpu", "to", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        is_cast = func.__name__ == "to" and isinstance(args[1], torch.dtype)
        if func.__name__ in self.NAMES and not is_cast:
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_all_steps_since_the_last_flush_come_in_one_transfer():
    guard = make_guard()
    for step in range(5):
        record(guard, step, 0.1 * step, norm=NAN if step == 3 else 2.0)
    with Transfers() as transfers:
        records = guard.flush()
    assert transfers.calls == ["tolist"]
    assert [kept.step for kept in records] == list(range(5))
    assert [kept.loss for kept in records] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [kept.skipped for kept in records] == [False, False, False, True, False]
    assert {kept.accuracy for kept in records} == {0.5}
    assert guard.flush() == []


def test_on_a_cpu_a_poll_reports_all_steps():
    guard = make_guard()
    record(guard, 0, 1.0)
    assert [kept.step for kept in guard.poll()] == [0]
    assert guard.poll() == guard.flush() == []


def test_on_a_gpu_a_poll_reports_the_steps_before_the_last_one_and_a_flush_the_rest(monkeypatch):
    """The host never waits for what was started since."""
    waits = []

    class Event:
        def __init__(self):
            self.number = len(events)
            events.append(self)

        def synchronize(self):
            waits.append(self.number)

    events: list[Event] = []
    monkeypatch.setattr(finite, "_to_host", lambda values: (values, Event()))
    guard = make_guard()
    reported = []
    for step in range(6):
        record(guard, step, float(step))
        if step % 2:
            reported.append([kept.loss for kept in guard.poll()])
    assert reported == [[], [0.0, 1.0], [2.0, 3.0]]
    assert waits == [0, 1]
    record(guard, 6, 6.0)
    assert [kept.loss for kept in guard.flush()] == [4.0, 5.0, 6.0]
    assert guard.state_dict() == {"figures": [], "rows": []}


def test_figures_are_those_of_their_own_step_whatever_their_precision():
    guard = make_guard()
    loss, norm = torch.tensor(0.1, dtype=torch.float64), torch.tensor(3.0, dtype=torch.bfloat16)
    guard.record(7, ROWS, loss, torch.tensor(0.25), norm, guard.check(loss, norm))
    (kept,) = guard.flush()
    assert (kept.step, kept.loss, kept.accuracy, kept.gradient_norm) == (7, 0.1, 0.25, 3.0)


def test_the_limit_counts_the_whole_run_not_steps_in_a_row(caplog):
    guard = make_guard(max_skipped=2)
    for step, loss in enumerate((NAN, 1.0, 1.0, INF, 1.0)):
        record(guard, step, loss)
        guard.flush()
    record(guard, 5, NAN)
    with pytest.raises(UserError, match="not finite: 3 "):
        guard.flush()
    assert [r.getMessage()[:26] for r in caplog.records if r.levelno == logging.WARNING] == [
        "step 0: loss nan, gradient",
        "step 3: loss inf, gradient",
    ]


def test_a_resumed_run_goes_on_counting(tmp_path):
    guard = make_guard(max_skipped=1)
    record(guard, 4, NAN, norm=INF)
    guard.flush()
    torch.save(guard.state_dict(), tmp_path / "state.pt")
    resumed = make_guard(max_skipped=1, dump=tmp_path / "dump.json")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    record(resumed, 9, INF, rows=np.array([3, 4]))
    with pytest.raises(UserError):
        resumed.flush()
    dumped = json.loads((tmp_path / "dump.json").read_text())["skipped"]
    assert [(step["step"], step["loss"], step["gradient_norm"]) for step in dumped] == [
        (4, "nan", "inf"),
        (9, "inf", 1.0),
    ]
    assert [step["rows"] for step in dumped] == [ROWS.tolist(), [3, 4]]


def test_state_is_not_saved_over_steps_that_nobody_has_looked_at():
    guard = make_guard()
    record(guard, 0, NAN)
    with pytest.raises(AssertionError, match="flush"):
        guard.state_dict()


def test_the_message_names_step_figures_images_and_what_to_change(tmp_path):
    guard = make_guard(max_skipped=0, dump=tmp_path / "dump.json")
    record(guard, 12, NAN, norm=INF)
    with pytest.raises(UserError) as raised:
        guard.flush()
    message = str(raised.value)
    parts = ["step 12", "loss nan", "norm inf", "10.png (row 10)", "13.png (row 13), ...", "train.learning_rate"]
    assert not [part for part in [*parts, "train.max_skipped_steps = 0", str(tmp_path)] if part not in message]
    assert "14.png" not in message


def test_without_a_dump_the_message_names_no_file():
    guard = make_guard(max_skipped=0)
    record(guard, 0, NAN)
    with pytest.raises(UserError, match=r"max_skipped_steps = 0\); lower"):
        guard.flush()


def test_a_warning_tells_how_many_steps_are_left(caplog):
    guard = make_guard(max_skipped=3)
    record(guard, 2, NAN, rows=ROWS[:2])
    guard.flush()
    assert "skipped step 1 of at most 3; its first images: 10.png (row 10), 11.png (row 11)" in caplog.text
    assert "..." not in caplog.text


def test_the_dump_is_json_and_names_all_images_of_all_skipped_steps(tmp_path):
    dump = tmp_path / "not/there/yet.json"
    guard = make_guard(max_skipped=1, dump=dump)
    record(guard, 1, -INF)
    record(guard, 2, 1.0, norm=NAN)
    with pytest.raises(UserError):
        guard.flush()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    content = json.loads(dump.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["max_skipped_steps"] == 1
    first, second = content["skipped"]
    assert (first["step"], first["loss"], first["gradient_norm"]) == (1, "-inf", 1.0)
    assert (second["step"], second["loss"], second["gradient_norm"]) == (2, 1.0, "nan")
    for step in (first, second):
        assert step["rows"] == ROWS.tolist()
        assert [image["img_path"] for image in step["images"]] == [f"{row}.png" for row in ROWS]


def test_zero_stops_at_the_first(caplog):
    guard = make_guard(max_skipped=0)
    record(guard, 0, 1.0)
    guard.flush()
    record(guard, 1, 1.0, norm=INF)
    with pytest.raises(UserError, match="step 1"):
        guard.flush()
    assert not caplog.records


@pytest.mark.parametrize("norm", [INF, NAN])
def test_an_overflow_of_fp16_is_skipped_and_counts_against_nobody(norm):
    guard = make_guard(max_skipped=0)
    record(guard, 0, 1.0, norm=norm, loss_scale=65536.0)
    (kept,) = guard.flush()
    assert kept.skipped
    assert kept.overflow
    assert guard.skipped == []


@pytest.mark.parametrize(("loss", "loss_scale"), [(NAN, 65536.0), (1.0, 1.0), (1.0, 0.5)])
def test_no_loss_scale_excuses_a_bad_loss_nor_one_that_cannot_be_to_blame(loss, loss_scale):
    guard = make_guard(max_skipped=0)
    record(guard, 0, loss, norm=INF, loss_scale=loss_scale)
    with pytest.raises(UserError):
        guard.flush()
