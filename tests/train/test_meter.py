import math

import pytest
import torch

from retnet.train.meter import Meter


def add(meter: Meter, *values: float) -> None:
    for value in values:
        meter.add(torch.tensor(value), torch.tensor(2 * value))


def test_means_over_an_interval() -> None:
    meter = Meter()
    add(meter, 1.0, 3.0)
    assert len(meter) == 2
    interval = meter.take()
    assert (interval.loss_nats, interval.gradient_norm) == (2.0, 4.0)
    assert interval.nonfinite_step is None
    assert interval.step_s >= 0
    assert len(meter) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_bad_step_is_named(bad: float) -> None:
    """Steps count over all intervals."""
    meter = Meter()
    add(meter, 1.0, 1.0, 1.0)
    meter.take()
    add(meter, 1.0, bad, 1.0, bad)
    assert meter.take().nonfinite_step == 4


def test_a_bad_gradient_is_as_bad_as_a_bad_loss() -> None:
    meter = Meter()
    meter.add(torch.tensor(1.0), torch.tensor(math.nan))
    assert meter.take().nonfinite_step == 0
