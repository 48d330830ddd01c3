import pytest

from retnet.train.config import OptimizerConfig, TrainConfig
from retnet.train.pace import Pace, num_steps_within


def test_minutes_become_steps() -> None:
    left = dict(step=50, elapsed_s=10.0, step_s=0.2)
    assert num_steps_within(120, reserve_s=10.0, **left) == 50 + 500
    assert num_steps_within(120, reserve_s=0.0, **left) == 50 + 550


def test_validation_keeps_at_most_a_third_of_the_minutes() -> None:
    assert num_steps_within(120, step=0, elapsed_s=0.0, step_s=1.0, reserve_s=1000.0) == 80


def test_minutes_that_are_over_add_no_step() -> None:
    assert num_steps_within(10, step=3, elapsed_s=20.0, step_s=5.0, reserve_s=0.0) == 3


class Machine:
    """A machine whose steps take a known time, and the pace of a run of two minutes on it."""

    def __init__(self, *, warmup_steps: int = 100, **changes: int) -> None:
        optimizer = OptimizerConfig(warmup_steps=warmup_steps)
        config = TrainConfig(minutes=2, batch_size=1, context=100, optimizer=optimizer, **changes)
        self.pace = Pace(config, held_out_bytes=0)
        self.step, self.now_s = 0, 0.0
        self.settled_at: list[int] = []

    def run(self, step_s: float, until_step: int) -> None:
        while self.step != self.pace.num_steps and self.step < until_step:
            self.step, self.now_s = self.step + 1, self.now_s + step_s
            is_wanted = self.pace.wants_measurement(self.step, self.now_s)
            if (is_wanted or self.step % 10 == 0) and self.update():
                self.settled_at.append(self.step)

    def update(self) -> bool:
        return self.pace.update(self.step, elapsed_s=self.now_s, trained_s=self.now_s)


def test_steps_are_counted_out() -> None:
    pace = Pace(TrainConfig(steps=7), held_out_bytes=100)
    assert pace.num_steps == 7
    assert not pace.wants_measurement(2, 1e9)
    assert not pace.update(5, elapsed_s=1e9, trained_s=1e9)


def test_a_steady_machine_settles_once_after_the_warm_up() -> None:
    machine = Machine(warmup_steps=50)
    machine.run(0.2, until_step=10**6)
    assert machine.settled_at == [50]
    assert machine.now_s == pytest.approx(120, abs=0.5)


def test_slow_first_steps_do_not_count() -> None:
    machine = Machine(warmup_steps=50)
    machine.run(4.0, until_step=2)
    machine.run(0.25, until_step=10**6)
    assert machine.now_s == pytest.approx(120, abs=0.5)


def test_a_warm_up_that_takes_too_long_is_not_waited_for() -> None:
    machine = Machine(warmup_steps=50)
    machine.run(5.0, until_step=10**6)
    assert machine.settled_at == [3]
    assert machine.now_s == pytest.approx(120, abs=5)


def test_a_machine_that_slows_down_ends_about_in_time() -> None:
    """Another program took the cores, and a run of 2.5 minutes took eleven."""
    machine = Machine(warmup_steps=50)
    machine.run(0.25, until_step=200)
    machine.run(2.5, until_step=10**6)
    assert 115 < machine.now_s < 145


def test_a_machine_that_speeds_up_trains_longer() -> None:
    machine = Machine(warmup_steps=50)
    machine.run(1.0, until_step=30)
    machine.run(0.25, until_step=10**6)
    assert 80 < machine.now_s < 120  # 52 if the first estimate were kept


def test_the_length_does_not_grow_late() -> None:
    """The learning rate has fallen by then, and would rise again."""
    machine = Machine(warmup_steps=50)
    machine.run(0.5, until_step=150)
    machine.run(0.1, until_step=10**6)
    assert machine.step == 240
