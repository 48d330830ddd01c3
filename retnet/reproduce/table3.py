"""Table 3: zero- and few-shot accuracy of given checkpoints, by lm_eval."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from retnet.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE
from retnet.reproduce.cells import Cell, Place, Values
from retnet.reproduce.config import Budget
from retnet.reproduce.findings import Findings, Line, Panel, Table
from retnet.reproduce.paper import TABLE_3
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
    """A cell for each checkpoint, number of shots and task."""
    budget = BUDGETS[ask.budget]
    cells = []
    for name in ask.checkpoints:
        digest = _digest(_require_checkpoint(Path(name)))
        for shots in budget.shots:
            for task in _tasks(ask.data) if budget.local else TABLE_3:
                settings = {"checkpoint": name, "sha256": digest, "task": task, "shots": shots}
                if budget.local:
                    settings["data_sha256"] = _digest(sorted((ask.data / task).iterdir()))
                key = f"task-{slug(Path(name).resolve().name)}-{digest[:8]}-{task}-{shots}shot"
                settings["limit"] = budget.limit
                cells.append(Cell(key=key, measure=measure_task_score, settings=settings))
    return cells


def measure_task_score(
    place: Place,
    *,
    checkpoint: str,
    sha256: str,
    task: str,
    shots: int,
    limit: int | None,
    data_sha256: str | None = None,
) -> Values:
    """A task's scores, of a checkpoint of any causal model that transformers loads.

    sha256: of its weights. data_sha256: of the task's files in the folder of data sets; None where
    lm_eval downloads them.
    """
    if find_spec("lm_eval") is None:
        raise ValueError("table3 needs EleutherAI's lm_eval: pip install 'retnet[eval]'")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    import retnet.hf  # noqa: F401, it makes our models known to the two
    from retnet.eval.config import EvalConfig
    from retnet.eval.harness import evaluate

    config = EvalConfig(
        tasks=task,
        task_data=None if data_sha256 is None else str(place.data),
        limit=limit,
        num_fewshot=shots,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    scores = evaluate(model, AutoTokenizer.from_pretrained(checkpoint), config)
    return {"scores": [asdict(score) for score in scores]}


def _digest(files: Sequence[Path]) -> str:
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def _require_checkpoint(folder: Path) -> list[Path]:
    """The weights of a checkpoint; ValueError where there are none, or too many for the memory."""
    if not folder.is_dir():
        raise ValueError(f"models: {str(folder)!r} is not the folder of a checkpoint")
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise ValueError(f"models: {str(folder)!r} has no weights, such as {WEIGHTS_FILE}")
    size, available = sum(file.stat().st_size for file in weights), _memory_bytes()
    fields = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    kind = fields.get("dtype") or fields.get("torch_dtype") or "float32"
    needed = size * (2 if "16" in kind else 1)  # evaluated in fp32
    if available is not None and needed > available:
        raise ValueError(
            f"models: {str(folder)!r} takes {needed / 1e9:.1f} GB in fp32, and this machine has "
            f"{available / 1e9:.1f} GB of memory; evaluate it on a larger one"
        )
    return weights


def _memory_bytes() -> int | None:
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
    # (checkpoint, shots) -> task -> its score.
    found: dict[tuple[str, int], dict[str, Values]] = {}
    for cell in _cells(ask):
        if cell.key in records:
            settings, scores = cell.settings, records[cell.key].result["scores"]
            of_model = found.setdefault((settings["checkpoint"], settings["shots"]), {})
            of_model[settings["task"]] = _best(scores, settings["task"])
    if not found:
        return None
    tasks = [task for task in TABLE_3 if any(task in scores for scores in found.values())]
    chance = {task: score["chance"] for scores in found.values() for task, score in scores.items()}
    rows = [
        [f"{Path(name).name}, {shots}-shot", *(_shown(scores.get(task)) for task in tasks)]
        for (name, shots), scores in found.items()
    ]
    rows += [
        [f"paper, {name}, {shots}-shot", *(f"{TABLE_3[task][turn][column]:.1f}" for task in tasks)]
        for turn, shots in enumerate((0, 4))
        for column, name in enumerate(("Transformer", "RetNet"))
    ]
    rows.append(["guessing", *(_percent(chance.get(task)) for task in tasks)])
    return Findings(
        title="Table 3: accuracy of checkpoints",
        tables=[Table(title="Percent", columns=["model", *tasks], rows=rows)],
        panels=[_panel(found, tasks)],
        notes=[
            "Normed by length where lm_eval does so; ± is its standard error over the items. The "
            "paper's models have 6.7B parameters and 100B tokens of training: another world."
        ],
    )


def _best(scores: Sequence[Values], task: str) -> Values:
    """The accuracy of a task: that normed by length where there is one."""
    named = {score["metric"]: score for score in scores if score["task"] == task}
    return named.get("acc_norm") or named["acc"]


def _shown(score: Values | None) -> str:
    if score is None:
        return "-"
    error = "" if score["stderr"] is None else f" ± {100 * score['stderr']:.1f}"
    return f"{100 * score['value']:.1f}{error}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _panel(found: Mapping[tuple[str, int], Mapping[str, Values]], tasks: list[str]) -> Panel:
    lines = []
    for (name, shots), scores in found.items():
        known = [(place, scores[task]) for place, task in enumerate(tasks) if task in scores]
        lines.append(
            Line(
                name=f"{Path(name).name}, {shots}-shot",
                x=[place for place, _ in known],
                y=[100 * score["value"] for _, score in known],
                spread=[100 * (score["stderr"] or 0.0) for _, score in known],
            )
        )
    for column, name in enumerate(("Transformer", "RetNet")):
        values = [TABLE_3[task][0][column] for task in tasks]
        lines.append(Line(name=f"paper, {name}, 6.7B, 0-shot", x=list(range(len(tasks))), y=values))
    return Panel(title="accuracy", x_label="", y_label="percent", lines=lines, names=tasks)


TABLE3 = Study(cells=_cells, find=_find)
