"""lm_eval's own tasks, with their data sets replaced by local files.

The definitions stay what the package ships: prompts, choices, metrics. For each task asked for, a
definition is written that includes the official one and names another source of data; lm_eval has
both means (`include`, `custom_dataset`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict  # type: ignore[import-untyped]
from jinja2.meta import find_undeclared_variables
from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
from lm_eval.utils import env  # type: ignore[import-untyped]
from pyarrow import ArrowException  # type: ignore[import-untyped]

from retnet.eval.config import EvalConfig
from retnet.eval.items import DATA_ERRORS
from retnet.eval.local_data import (
    LocalDataError,
    Row,
    read_rows,
    require_folder,
    split_files,
    task_folders,
)

# The first that a task has is evaluated; from the last come solved examples.
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def local_task_manager(known: TaskManager, config: EvalConfig, workspace: Path) -> TaskManager:
    """A manager of a configuration's tasks, groups and tags, which read their data from files.

    known: all tasks of the package; workspace: an empty folder, which must stay until the tasks
    are loaded. Raises LocalDataError for a task whose files are not there.
    """
    assert config.task_data is not None
    require_folder(Path(config.task_data))
    members = _members(known, config.task_names)
    tasks = [name for name, entry in members.items() if entry.kind.name != "GROUP"]
    splits = {name: _splits(name, members[name].cfg) for name in tasks}
    folders = task_folders(Path(config.task_data), tasks)
    for number, (name, entry) in enumerate(members.items()):
        definition: dict[str, Any] = {"include": str(entry.yaml_path)}
        function = ""
        if name in folders:
            needs_examples = _takes_examples(entry.cfg, config)
            files = _files(folders[name], name, splits[name], needs_examples=needs_examples)
            definition["dataset_kwargs"] = {"task_of_files": name, "files": files}
            function = f"custom_dataset: !function {__name__}.{local_dataset.__name__}\n"
        # JSON is YAML, but for the tag that makes a name a function.
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in definition.items()]
        (workspace / f"{number}.yaml").write_text("".join(lines) + function, encoding="utf-8")
    return TaskManager(include_path=str(workspace), include_defaults=False)


def first_misfit(manager: TaskManager) -> LocalDataError | None:
    """What to say of the first task that can't make sense of its files; None if all can.

    manager: of `local_task_manager`.
    """
    for name in manager.all_subtasks:
        try:
            manager.load([name])
        except LocalDataError as error:
            return error
        except DATA_ERRORS as error:
            return LocalDataError(_misfit(name, manager.task_index[name].cfg, error))
    return None


def _misfit(name: str, definition: Mapping[str, Any], error: Exception) -> str:
    """What is wrong with the files of a task that lm_eval failed to load."""
    files = definition["dataset_kwargs"]["files"][_splits(name, definition)[0]]
    columns = read_rows(Path(files[0]), name)[0].keys()
    missing = _named_columns(definition) - columns
    if "process_docs" in definition:
        where = files[0]
    elif missing:
        wanted = ", ".join(map(repr, sorted(missing)))
        return f"{files[0]} has no column {wanted}, which {name} needs; it has {', '.join(columns)}"
    else:  # loading looks at one item only
        where = f"{files[0]}, item 1"
    return (
        f"{where} doesn't fit {name} ({type(error).__name__}: {error}); it needs the columns and "
        "values that the task's data set has on the hub"
    )


def _named_columns(definition: Mapping[str, Any]) -> set[str]:
    """The columns that the templates of a task name."""
    templates = (definition.get(key) for key in ("doc_to_text", "doc_to_target", "doc_to_choice"))
    parsed = [env.parse(template) for template in templates if isinstance(template, str)]
    return set().union(*map(find_undeclared_variables, parsed))


def local_dataset(
    *, task_of_files: str, files: Mapping[str, Sequence[str]], **_metadata: object
) -> DatasetDict:
    """The data set of a task, as lm_eval asks for it: a split without files is empty.

    _metadata: what the task's definition says about itself; lm_eval passes it, whatever it is.
    """
    rows = {
        split: [row for path in paths for row in read_rows(Path(path), task_of_files)]
        for split, paths in files.items()
    }
    return DatasetDict({split: _table(each, files[split]) for split, each in rows.items()})


def _table(rows: Sequence[Row], files: Sequence[str]) -> Dataset:
    try:
        return Dataset.from_list(rows)
    except (ArrowException, TypeError, ValueError) as error:
        raise LocalDataError(
            f"{', '.join(files)}: a column has values of several kinds ({error}); make them alike"
        ) from error


def _members(known: TaskManager, names: Sequence[str]) -> dict[str, Any]:
    """The tasks and groups that some names stand for, and their entries in the index."""
    members: dict[str, Any] = {}
    pending = list(names)
    while pending:
        name = pending.pop(0)
        entry = known.task_index[name]
        if entry.kind.name == "TAG":
            pending += sorted(entry.tags)
        elif name not in members:
            members[name] = entry
            pending += _names_in_group(known, entry) if entry.kind.name == "GROUP" else []
    return members


def _names_in_group(known: TaskManager, group: Any) -> list[str]:
    members = group.cfg["task"]
    names = [each if isinstance(each, str) else each.get("task") for each in members]
    for name in names:
        if not isinstance(name, str) or name not in known.task_index:
            raise LocalDataError(
                f"group {group.name!r} defines tasks of its own, whose data task_data can't "
                "replace; name other tasks"
            )
    return names


def _splits(name: str, definition: Mapping[str, Any]) -> list[str]:
    """The splits that a task names, first the one that is evaluated, last that of examples."""
    splits = [definition[key] for key in _SPLITS if definition.get(key)]
    if "class" in definition or not splits:
        raise LocalDataError(
            f"task {name!r} gets its data by its own code, so task_data can't replace it; leave it "
            "out, or leave task_data out to download"
        )
    return splits


def _files(
    folder: Path, name: str, splits: Sequence[str], *, needs_examples: bool
) -> dict[str, list[str]]:
    """The files of each of a task's splits."""
    evaluated, *_ = splits
    files = split_files(folder, name, tuple(dict.fromkeys(splits)), evaluated)
    *_, examples = splits
    if needs_examples and not files[examples]:
        raise LocalDataError(
            f"{folder} has no file of the split {examples!r}, from which {name} takes its solved "
            f"examples; add {examples}.jsonl to it, or set num_fewshot to 0"
        )
    return {split: list(map(str, paths)) for split, paths in files.items()}


def _takes_examples(definition: Mapping[str, Any], config: EvalConfig) -> bool:
    """Whether solved examples come from a split."""
    has_own = "samples" in (definition.get("fewshot_config") or {})
    return config.num_examples(definition.get("num_fewshot")) > 0 and not has_own
