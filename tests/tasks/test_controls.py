"""Controls: tasks at which a model has to fail, and does."""

from math import log
from typing import get_args

import pytest
import torch

from retnet.config import MixerKind, ModelConfig
from retnet.loss import IGNORED
from retnet.tasks.controls import Parity, RandomBytes
from retnet.tasks.training import TaskTraining, accuracy, loss_nats, train_on_task
from retnet.train.config import OptimizerConfig

TRAINING = TaskTraining(
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=20),
    num_steps=300,
    batch_size=32,
    test_every=300,
    num_tested=256,
    threshold=1.1,
)


def model(mixer: MixerKind) -> ModelConfig:
    return ModelConfig(
        mixer=mixer, vocab_size=256, d_model=32, num_layers=2, num_heads=2, decay="wide"
    )


def test_parity() -> None:
    """Each answer is the sum of the bits so far, modulo 2, from the first asked on."""
    tokens, targets = Parity(length=9, first_asked=4).batch(5, seed=0, step=0)
    assert tokens.shape == targets.shape == (5, 9)
    assert set(tokens.unique().tolist()) == {0, 1}
    assert (targets[:, :4] == IGNORED).all()
    assert torch.equal(targets[:, 4:], tokens.cumsum(1)[:, 4:] % 2)


@pytest.mark.parametrize("first", [-1, 9])
def test_parity_asks_within_its_length(first: int) -> None:
    with pytest.raises(ValueError, match=f"first_asked must be in .*9.*got {first}"):
        Parity(length=9, first_asked=first)


def test_random_bytes() -> None:
    """The next byte is asked for, and every byte comes."""
    tokens, targets = RandomBytes(length=300).batch(50, seed=0, step=0)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert len(tokens.unique()) == 256
    with pytest.raises(ValueError, match="length must be >= 1, got 0"):
        RandomBytes(length=0)


@pytest.mark.parametrize("mixer", get_args(MixerKind))
def test_parity_beyond_the_trained_length_is_guessed(mixer: MixerKind) -> None:
    """Whatever a model knows of four bits, it doesn't know of thirty-two."""
    net, _ = train_on_task(model(mixer), Parity(length=4), TRAINING)
    assert accuracy(net, Parity(length=4), num_examples=256) > 0.6
    beyond = accuracy(net, Parity(length=64, first_asked=32), num_examples=512)
    # Half, within four standard errors of 512 rows whose answers hang together.
    assert beyond == pytest.approx(0.5, abs=4 * 0.5 / 512**0.5)


@pytest.mark.parametrize("mixer", ["retention", "attention"])
def test_random_bytes_stay_at_8_bits(mixer: MixerKind) -> None:
    task = RandomBytes(length=64)
    net, _ = train_on_task(model(mixer), task, TRAINING)
    bits = loss_nats(net, task, num_examples=512) / log(2)
    assert 7.995 < bits < 8.05
