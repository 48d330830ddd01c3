"""Training on a task: attention learns to recall, and nothing is learnt from random answers."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from retnet.config import MixerKind, ModelConfig
from retnet.loss import IGNORED, next_token_loss
from retnet.model import RetNet
from retnet.tasks.draws import TEST_SEED, generator
from retnet.tasks.recall import AssociativeRecall, Copying, Examples
from retnet.tasks.training import (
    Progress,
    TaskTraining,
    accuracy,
    learn,
    state_bytes,
    train_on_task,
)
from retnet.train.config import OptimizerConfig

SMALL = AssociativeRecall(length=32, num_pairs=2, vocab_size=64)
TRAINING = TaskTraining(
    optimizer=OptimizerConfig(learning_rate=1e-2),
    num_steps=1000,
    batch_size=64,
    test_every=50,
    num_tested=256,
    threshold=0.97,
)
SHORT = replace(TRAINING, num_steps=5, batch_size=4, test_every=2, num_tested=8)


def small_model(mixer: MixerKind, **changes: Any) -> ModelConfig:
    base: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "num_layers": 2, "num_heads": 1}
    return ModelConfig(**{**base, "mixer": mixer, **changes})


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class RandomAnswers:
    """A task whose questions stand where another's do, with answers that nothing tells."""

    task: AssociativeRecall

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    def batch(self, batch_size: int, *, seed: int, step: int) -> Examples:
        tokens, targets = self.task.batch(batch_size, seed=seed, step=step)
        drawn = generator(seed + 1, step).integers(32, 64, size=targets.shape)
        return Examples(tokens, torch.where(targets == IGNORED, IGNORED, torch.from_numpy(drawn)))


@pytest.mark.slow
def test_attention_learns_to_recall() -> None:
    """In a few hundred steps, and it stops once it can; 32 values make chance 1 in 32."""
    seen: list[Progress] = []
    model, outcome = train_on_task(small_model("attention"), SMALL, TRAINING, report=seen.append)
    assert outcome.last == seen[-1]
    assert outcome.last.accuracy >= 0.97 and outcome.last.num_steps < TRAINING.num_steps
    assert accuracy(model, SMALL, num_examples=1000, seed=TEST_SEED + 1) > 0.95


@pytest.mark.slow
def test_nothing_is_learnt_from_random_answers() -> None:
    """With as many steps as recall takes: the examples for tests are no help either."""
    training = replace(TRAINING, num_steps=400, test_every=400)
    _, outcome = train_on_task(small_model("attention"), RandomAnswers(SMALL), training)
    assert outcome.last.num_steps == 400
    # 512 questions: a guesser is right in 16 of them, and in 40 less often than once in a million.
    assert outcome.last.accuracy < 40 / 512
    assert outcome.last.loss > 3.4


@pytest.mark.parametrize("mixer", ["retention", "attention", "linear", "rwkv", "h3", "hyena"])
def test_any_mixer(mixer: MixerKind) -> None:
    """Tests after steps 2 and 4 and the last; the same again from the same seed."""
    config, seen = small_model(mixer), list[Progress]()
    model, outcome = train_on_task(config, SMALL, SHORT, report=seen.append)
    assert [progress.num_steps for progress in seen] == [2, 4, 5]
    assert outcome.num_parameters == sum(weight.numel() for weight in model.parameters())
    again, _ = train_on_task(config, SMALL, SHORT)
    for weight, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_bytes_of_state() -> None:
    """A state of retention does not grow, an attention's cache does."""
    longer = replace(SMALL, length=64)
    retention, attention = RetNet(small_model("retention")), RetNet(small_model("attention"))
    assert state_bytes(retention, SMALL) == state_bytes(retention, longer) == 4 * 2 * 32 * 64
    assert state_bytes(attention, SMALL) == 4 * 2 * 32 * (32 + 32 + 1)
    assert state_bytes(attention, longer) == 2 * state_bytes(attention, SMALL)


@torch.no_grad()
def test_accuracy_counts_questions_alone() -> None:
    """By hand from all logits: the share of questions whose likeliest id is the target."""
    task = Copying(num_copied=4, vocab_size=3)
    model = RetNet(small_model("retention", vocab_size=3), generator=generator_of(0)).eval()
    right, asked = 0, 0
    for step, rows in enumerate((16, 16, 8)):
        tokens, targets = task.batch(rows, seed=TEST_SEED, step=step)
        named = model(tokens)[0].argmax(dim=-1)
        right += int(((named == targets) & (targets != IGNORED)).sum())
        asked += 4 * rows
    assert 0 < right < asked
    assert accuracy(model, task, num_examples=40, batch_size=16) == right / asked


def test_loss_is_of_questions_alone() -> None:
    """The first loss is that of all logits at the questions of the first batch."""
    model = RetNet(small_model("retention"), generator=generator_of(0))
    tokens, targets = SMALL.batch(4, seed=0, step=0)
    with torch.no_grad():
        expected = next_token_loss(model(tokens)[0], targets)
    (progress,) = learn(model, SMALL, replace(SHORT, num_steps=1))
    assert progress.loss == pytest.approx(float(expected), rel=1e-5)


def test_refuses_ids_that_the_model_has_not() -> None:
    model = RetNet(small_model("retention", vocab_size=63))
    with pytest.raises(ValueError, match=r"vocab_size must be at least the task's, got 63 and 64"):
        next(learn(model, SMALL, SHORT))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_steps": 0}, "num_steps must be an integer >= 1"),
        ({"batch_size": 1.5}, "batch_size must be an integer >= 1"),
        ({"seed": TEST_SEED}, "higher ones are for tests"),
        ({"threshold": 0}, "threshold must be > 0"),
    ],
)
def test_refuses(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskTraining(**changes)
