import pytest
import torch

from knee_siglip.params.sections import TrainParams
from knee_siglip.training import throughput
from knee_siglip.training.finite import FiniteGuard
from knee_siglip.training.throughput import Throughput
from knee_siglip.training.trainer import Trainer


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def let_pass(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def take_steps(measured, clock, seconds, pairs=8, flops=2e12):
    clock.let_pass(seconds)
    measured.count(pairs, flops)
    measured.lap()


def test_figures_are_per_second_of_the_steps(clock):
    measured = Throughput(peak=1e13)
    measured.start()
    measured.wait(0.5)
    take_steps(measured, clock, 2.0)
    take_steps(measured, clock, 2.0)
    figures = measured.metrics()
    assert figures.pop("peak_memory_mb") > 1
    assert figures == pytest.approx(
        {"pairs_per_second": 4.0, "data_wait_share": 0.125, "model_tflops_per_second": 1.0, "mfu": 0.1}
    )


def test_without_a_known_peak_there_is_no_mfu(clock):
    measured = Throughput()
    measured.start()
    take_steps(measured, clock, 1.0)
    assert "mfu" not in measured.metrics()
    assert "model_tflops_per_second" in measured.metrics()


def test_before_the_first_step_is_done_there_are_no_figures(clock):
    measured = Throughput()
    assert measured.metrics() == {}
    measured.start()
    measured.count(8, 1e12)
    assert measured.metrics() == {}


def test_time_between_the_steps_of_two_epochs_does_not_count(clock):
    measured = Throughput()
    for _ in range(2):
        measured.start()
        take_steps(measured, clock, 1.0)
        clock.let_pass(100.0)  # validation
    assert measured.seconds == 2.0


def test_saving_after_validation_does_not_make_it_count(clock):
    """Before the state is saved the trainer waits for the device, and laps, though no step was taken meanwhile."""
    measured = Throughput()
    measured.start()
    take_steps(measured, clock, 1.0)
    clock.let_pass(100.0)
    measured.lap()
    measured.start()
    take_steps(measured, clock, 1.0)
    assert measured.seconds == 2.0


def test_a_trainer_counts_its_steps_and_not_its_validation(make_model, make_pairs, clock):
    """2 steps an epoch, of a second each; the state is saved after each epoch."""
    params = TrainParams(batch_size=8, epochs=2, save_every_steps=2)
    trainer = Trainer(
        *(make_model(), make_pairs(count=16), make_pairs(count=12), params),
        seed=0,
        device=torch.device("cpu"),
        log=lambda values, step: None,
        on_best=lambda metrics: clock.let_pass(500.0),
        guard=FiniteGuard(0, None, lambda rows: []),
    )
    train_step, measure = trainer.train_step, trainer.validate
    trainer.train_step = lambda batch, group: clock.let_pass(1.0) or train_step(batch, group)
    trainer.validate = lambda: clock.let_pass(100.0) or measure()
    trainer.fit()
    assert trainer.throughput.seconds == 4.0
    assert trainer.throughput.metrics()["pairs_per_second"] == 8.0


def test_a_resumed_run_goes_on_counting(clock, tmp_path):
    measured = Throughput(peak=1e13)
    measured.start()
    measured.wait(0.25)
    take_steps(measured, clock, 1.0)
    torch.save(measured.state_dict(), tmp_path / "state.pt")
    clock.now = 5.0  # another process, another zero
    resumed = Throughput(peak=1e13)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.metrics() == measured.metrics() | {"peak_memory_mb": resumed.metrics()["peak_memory_mb"]}
    resumed.start()
    take_steps(resumed, clock, 3.0)
    assert resumed.seconds == 4.0
    assert resumed.metrics()["pairs_per_second"] == 4.0
    assert isinstance(resumed.pairs, int)


def test_a_gpu_that_is_not_used_does_not_give_the_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    assert throughput.peak_memory_mb() > 1


def test_the_memory_of_a_gpu_in_use_is_the_gpus(monkeypatch):
    cuda = {"is_available": True, "is_initialized": True, "max_memory_allocated": 3 * 2**20}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert throughput.peak_memory_mb() == 3
