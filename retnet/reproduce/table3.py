"""Table 3: zero- and few-shot accuracy of given checkpoints, by lm_eval."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from retnet.checkpoint.files import WEIGHTS_FILE
from retnet.reproduce.cells import Cell, Place, Values
from retnet.reproduce.config import Budget
from retnet.reproduce.findings import Findings, Panel, Table
from retnet.reproduce.paper import TABLE_3
from retnet.reproduce.plot import points
from retnet.reproduce.study import Ask, Records, Study, slug


@dataclass(frozen=True, kw_only=True)
class TaskBudget:
    """How checkpoints are evaluated.

    Attributes:
        limit: items of each task; None for all.
        shots: solved examples before a question.
        local: whether tasks come from the folder of data sets, those that are there; else lm_eval
            downloads them.
    """

    limit: int | None
    shots: tuple[int, ...]
    local: bool


BUDGETS: dict[Budget, TaskBudget] = {
    "smoke": TaskBudget(limit=4, shots=(0,), local=True),
    "small": TaskBudget(limit=500, shots=(0,), local=True),
    "paper": TaskBudget(limit=None, shots=(0, 4), local=False),
}


def _cells(ask: Ask) -> list[Cell]:
    budget = BUDGETS[ask.budget]
    return [
        Cell(
            key=f"tasks-{slug(Path(name).name)}-{shots}shot",
            measure=measure_tasks,
            settings={
                "checkpoint": name,
                "shots": shots,
                "limit": budget.limit,
                "local": budget.local,
            },
        )
        for name in ask.checkpoints
        for shots in budget.shots
    ]


def measure_tasks(
    place: Place, *, checkpoint: str, shots: int, limit: int | None, local: bool
) -> Values:
    """The paper's tasks for a checkpoint of any causal model that transformers loads.

    Raises ValueError where it is not there, takes more memory than there is, or has no tasks.
    """
    folder = Path(checkpoint)
    _require_checkpoint(folder)
    if find_spec("lm_eval") is None:
        raise ValueError("table3 needs EleutherAI's lm_eval: pip install 'retnet[eval]'")
    tasks = _tasks(place.data) if local else list(TABLE_3)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import retnet.hf  # noqa: F401, it makes our models known to the two
    from retnet.eval.config import EvalConfig
    from retnet.eval.harness import evaluate

    config = EvalConfig(
        tasks=",".join(tasks),
        task_data=str(place.data) if local else None,
        limit=limit,
        num_fewshot=shots or None,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    scores = evaluate(model, AutoTokenizer.from_pretrained(folder), config)
    return {"scores": [asdict(score) for score in scores]}


def _require_checkpoint(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"models: {str(folder)!r} is not the folder of a checkpoint")
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not weights:
        raise ValueError(f"models: {str(folder)!r} has no weights, such as {WEIGHTS_FILE}")
    size, available = sum(file.stat().st_size for file in weights), _memory_bytes()
    # Half of a checkpoint may be in bf16, which fp32 doubles.
    if available is not None and size > available:
        raise ValueError(
            f"models: {str(folder)!r} has {size / 1e9:.1f} GB of weights, and this machine "
            f"{available / 1e9:.1f} GB of memory; evaluate it on a larger one"
        )


def _memory_bytes() -> int | None:
    import os

    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _tasks(data: Path) -> list[str]:
    """The paper's tasks that the folder of data sets has."""
    found = [task for task in TABLE_3 if (data / task).is_dir()]
    if not found:
        raise ValueError(
            f"data {str(data)!r} has none of the folders {', '.join(TABLE_3)}; see "
            "docs/evaluation.md, or use the budget 'paper', for which lm_eval downloads them"
        )
    return found


def _find(ask: Ask, records: Records) -> Findings | None:
    found = {
        (cell.settings["checkpoint"], cell.settings["shots"]): records[cell.key].result["scores"]
        for cell in _cells(ask)
        if cell.key in records
    }
    if not found:
        return None
    tasks = [task for task in TABLE_3 if any(_best(scores, task) for scores in found.values())]
    rows = [
        [f"{Path(name).name}, {shots}-shot", *(_shown(_best(scores, task)) for task in tasks)]
        for (name, shots), scores in found.items()
    ]
    rows += [
        [f"paper, {name}, {shots}-shot", *(f"{TABLE_3[task][turn][column]:.1f}" for task in tasks)]
        for turn, shots in enumerate((0, 4))
        for column, name in enumerate(("Transformer", "RetNet"))
    ]
    first = next(iter(found.values()))
    chance = [_best(first, task) for task in tasks]
    rows.append(["guessing", *(_percent(each["chance"] if each else None) for each in chance)])
    return Findings(
        title="Table 3: accuracy of checkpoints",
        tables=[Table(title="Percent", columns=["model", *tasks], rows=rows)],
        panels=[_panel(found, tasks)],
        notes=[
            "Normed by length where lm_eval does so; ± is its standard error over the items. The "
            "paper's models have 6.7B parameters and 100B tokens of training: another world."
        ],
    )


def _best(scores: Sequence[Values], task: str) -> Values | None:
    """The accuracy of a task: that normed by length where there is one."""
    named = {score["metric"]: score for score in scores if score["task"] == task}
    return named.get("acc_norm") or named.get("acc")


def _shown(score: Values | None) -> str:
    if score is None:
        return "-"
    error = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.1f}"
    return f"{100 * score['value']:.1f}{error}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _panel(found: dict[tuple[str, int], list[Values]], tasks: list[str]) -> Panel:
    lines = []
    for (name, shots), scores in found.items():
        best = [_best(scores, task) for task in tasks]
        values = [100 * score["value"] if score else 0.0 for score in best]
        errors = [100 * (score["stderr"] or 0.0) if score else 0.0 for score in best]
        lines.append(points(f"{Path(name).name}, {shots}-shot", values, errors))
    for column, name in enumerate(("Transformer", "RetNet")):
        values = [TABLE_3[task][0][column] for task in tasks]
        lines.append(points(f"paper, {name}, 6.7B, 0-shot", values))
    return Panel(title="accuracy", x_label="", y_label="percent", lines=lines, names=list(tasks))


TABLE3 = Study(cells=_cells, find=_find)
