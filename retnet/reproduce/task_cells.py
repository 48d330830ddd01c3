"""A cell that trains a model on a synthetic task, and tells what it can do."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from retnet.config import ModelConfig
from retnet.reproduce.cells import Cell, Place, Values
from retnet.tasks.controls import Parity, RandomBytes
from retnet.tasks.recall import AssociativeRecall, Copying, Induction, Needle, Task
from retnet.tasks.training import TaskTraining, accuracy, loss_nats, train_on_task
from retnet.train.config import OptimizerConfig

_TASKS: dict[str, Callable[..., Task]] = {
    "recall": AssociativeRecall,
    "copying": Copying,
    "induction": Induction,
    "needle": Needle,
    "parity": Parity,
    "random bytes": RandomBytes,
}

NUM_TESTED = 1024  # rows of a test


def task_cell(
    key: str,
    *,
    model: ModelConfig,
    task: Mapping[str, Any],
    training: Mapping[str, Any],
    seed: int,
    tests: Mapping[str, Mapping[str, Any]] | None = None,
) -> Cell:
    """A model trained on a task from a seed.

    key: a plain file name. task: its kind, and its settings; tests: other tasks that it is then
    asked about, by name.
    """
    return Cell(
        key=f"{key}-seed{seed}",
        measure=measure_task,
        settings={
            "model": model.to_dict(),
            "task": dict(task),
            "training": {**training, "seed": seed},
            "tests": {name: dict(test) for name, test in (tests or {}).items()},
        },
    )


def measure_task(
    place: Place,
    *,
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    training: Mapping[str, Any],
    tests: Mapping[str, Mapping[str, Any]],
) -> Values:
    """Train a model on a task: the share of right answers, and what an answer costs."""
    rest = {key: value for key, value in training.items() if key != "optimizer"}
    settings = TaskTraining(optimizer=OptimizerConfig(**training["optimizer"]), **rest)
    trained_on, curve = make_task(task), list[list[float]]()
    net, outcome = train_on_task(
        ModelConfig.from_dict(model),
        trained_on,
        settings,
        report=lambda now: curve.append([now.num_steps, now.accuracy]),
    )
    return {
        **{key: value for key, value in asdict(outcome).items() if key != "last"},
        **{key: value for key, value in asdict(outcome.last).items() if key != "loss"},
        "nats": loss_nats(net, trained_on),
        "curve": curve,
        "tests": {
            name: {"accuracy": accuracy(net, make_task(test), num_examples=NUM_TESTED)}
            for name, test in tests.items()
        },
    }


def make_task(settings: Mapping[str, Any]) -> Task:
    """A task from its kind and its settings."""
    rest = {key: value for key, value in settings.items() if key != "kind"}
    return _TASKS[settings["kind"]](**rest)
