import json
import math

import pytest
import torch

from retnet.train.meter import Meter


def alone(x: torch.Tensor) -> torch.Tensor:
    """The mean over one process."""
    return x


def add(meter: Meter, *values: float) -> None:
    for value in values:
        meter.add(torch.tensor(value), torch.tensor(2 * value))


def test_means_over_an_interval() -> None:
    meter = Meter()
    add(meter, 1.0, 3.0)
    assert len(meter) == 2
    interval = meter.take(alone)
    assert (interval.loss_nats, interval.gradient_norm) == (2.0, 4.0)
    assert interval.nonfinite_step is None
    assert interval.step_s >= 0
    assert len(meter) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_named(bad: float) -> None:
    """Steps count over all intervals."""
    meter = Meter()
    add(meter, 1.0, 1.0, 1.0)
    meter.take(alone)
    add(meter, 1.0, bad, 1.0, bad)
    assert meter.take(alone).nonfinite_step == 4


def test_a_bad_gradient_is_as_bad_as_a_bad_loss() -> None:
    meter = Meter()
    meter.add(torch.tensor(1.0), torch.tensor(math.nan))
    assert meter.take(alone).nonfinite_step == 0


def test_another_meter_goes_on() -> None:
    """What is pending, to the last bit, and the numbers of steps."""
    straight, before = Meter(), Meter()
    for meter in (straight, before):
        add(meter, 0.1, 0.2, 0.3)
    after = Meter(first_step=3, pending=json.loads(json.dumps(before.pending(alone))))
    for meter in (straight, after):
        add(meter, 0.7)
    assert straight.take(alone)[:2] == after.take(alone)[:2]
    add(after, math.nan)
    assert after.take(alone).nonfinite_step == 4
