"""Training a model on a task until it knows it, and asking it about examples it has never seen."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retnet.config import ModelConfig
from retnet.loss import IGNORED, linear_next_token_loss, linear_token_costs
from retnet.model import RetNet
from retnet.tasks.draws import TEST_SEED
from retnet.tasks.recall import Examples, Task
from retnet.train.config import OptimizerConfig
from retnet.train.optimizer import make_optimizer, set_learning_rate_
from retnet.train.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class TaskTraining:
    """How a model is trained on a task. By default as attention, of two layers 64 wide with one
    head, needs it for four pairs in 64 tokens.

    Attributes:
        optimizer: AdamW and its learning rate.
        num_steps: steps at most; the learning rate falls as if all were done.
        batch_size: examples of a step.
        seed: of the model's first weights and of what it is trained on; below 2^32.
        test_every: steps between two tests.
        num_tested: examples of a test, the same in each of them and for every seed.
        threshold: the share of right answers at which training ends early.
    """

    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=3e-3, weight_decay=0.1)
    )
    num_steps: int = 2000
    batch_size: int = 64
    seed: int = 0
    test_every: int = 100
    num_tested: int = 1024
    threshold: float = 0.99

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "test_every", "num_tested"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if not 0 <= self.seed < TEST_SEED:
            raise ValueError(
                f"seed must be in [0, 2^32), got {self.seed!r}; higher ones are for tests"
            )
        if not self.threshold > 0:
            raise ValueError(f"threshold must be > 0 (above 1 for never), got {self.threshold!r}")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is known after a test.

    num_steps: steps done; loss: the mean since the test before, in nats; accuracy: the share of
    right answers; elapsed_s: seconds since the first step, with the tests.
    """

    num_steps: int
    loss: float
    accuracy: float
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a model.

    last: how training ended; num_parameters: of the model, with its embedding; state_bytes: what
    it remembers of one example at its end.
    """

    last: Progress
    num_parameters: int
    state_bytes: int


def train_on_task(
    config: ModelConfig,
    task: Task,
    training: TaskTraining,
    *,
    report: Callable[[Progress], object] = lambda _: None,
) -> tuple[RetNet, Outcome]:
    """A new model, trained on the CPU, and what came of it.

    report: is told of every test.
    """
    model = RetNet(config, generator=torch.Generator().manual_seed(training.seed))
    last: Progress | None = None
    for last in learn(model, task, training):
        report(last)
    assert last is not None
    count = sum(weight.numel() for weight in model.parameters())
    return model, Outcome(last=last, num_parameters=count, state_bytes=state_bytes(model, task))


def learn(model: RetNet, task: Task, training: TaskTraining) -> Iterator[Progress]:
    """Train a model on a task: how far it is after every test, the last of them after all steps or
    at the threshold.

    Raises:
        ValueError: the task has ids that the model has not.
    """
    if task.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the model's vocab_size must be at least the task's, got {model.config.vocab_size} "
            f"and {task.vocab_size}; make the model's larger or the task's smaller"
        )
    optimizer = make_optimizer(model, training.optimizer)
    started, losses = time.perf_counter(), list[Tensor]()
    for step in range(training.num_steps):
        rate = learning_rate(step, training.num_steps, training.optimizer)
        set_learning_rate_(optimizer, rate)
        batch = task.batch(training.batch_size, seed=training.seed, step=step)
        losses.append(_do_step_(model, optimizer, batch, clip=training.optimizer.clip))
        if (step + 1) % training.test_every and step + 1 < training.num_steps:
            continue
        progress = Progress(
            num_steps=step + 1,
            loss=float(torch.stack(losses).mean()),
            accuracy=accuracy(model, task, num_examples=training.num_tested),
            elapsed_s=time.perf_counter() - started,
        )
        yield progress
        if progress.accuracy >= training.threshold:
            return
        losses.clear()


@torch.no_grad()
def accuracy(
    model: RetNet,
    task: Task,
    *,
    num_examples: int = 1024,
    batch_size: int = 128,
    seed: int = TEST_SEED,
) -> float:
    """The share of right answers, the likeliest id being the model's, on examples for tests."""
    right, asked = 0, 0
    for step, first in enumerate(range(0, num_examples, batch_size)):
        rows = min(batch_size, num_examples - first)
        features, targets = _asked(model.eval(), task.batch(rows, seed=seed, step=step))
        right += int((model.logits(features).argmax(dim=-1) == targets).sum())
        asked += len(targets)
    return right / asked


@torch.no_grad()
def loss_nats(
    model: RetNet, task: Task, *, num_examples: int = 1024, batch_size: int = 128
) -> float:
    """What an answer costs on average, in nats, on examples for tests."""
    total, asked = 0.0, 0
    for step, first in enumerate(range(0, num_examples, batch_size)):
        rows = min(batch_size, num_examples - first)
        features, targets = _asked(model.eval(), task.batch(rows, seed=TEST_SEED, step=step))
        costs = linear_token_costs(features, model.head_weight, targets)
        total, asked = total + float(costs.sum(dtype=torch.float64)), asked + len(targets)
    return total / asked


@torch.no_grad()
def state_bytes(model: RetNet, task: Task) -> int:
    """Bytes of memory that a model's state takes behind one example of the task."""
    _, state = model.features(task.batch(1, seed=TEST_SEED, step=0).tokens)
    return state.num_bytes


def _do_step_(
    model: RetNet, optimizer: torch.optim.Optimizer, batch: Examples, *, clip: float
) -> Tensor:
    """One step of training: the loss before it, a scalar."""
    features, targets = _asked(model.train(), batch)
    loss = linear_next_token_loss(features, model.head_weight, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _asked(model: RetNet, batch: Examples) -> tuple[Tensor, Tensor]:
    """The features [N, D] and targets [N] where something is asked."""
    features, _ = model.features(batch.tokens)
    is_asked = batch.targets != IGNORED
    return features[is_asked], batch.targets[is_asked]
