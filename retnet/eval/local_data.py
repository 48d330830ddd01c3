"""The data set of a task, read from files: which files are which split, and what is in them.

DIR/TASK holds .jsonl, .json or .parquet files with the columns that the task's data set has on the
Hugging Face hub, named after their splits. Three data sets are also read as their authors or
others published them:

    LAMBADA     {"text": ...} a line, in a folder "lambada"
    HellaSwag   .txt, six lines an item: "activity: context", the right ending's number, 4 endings
    PIQA        valid.jsonl with the labels beside it, a line each, in valid-labels.lst

Text may be compressed (.gz, .bz2).
"""

import bz2
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_COMPRESSED: dict[str, Callable[[Path, str], Any]] = {".bz2": bz2.open, ".gz": gzip.open}
_FOLDER_OF_TASK = {"lambada_openai": "lambada"}
_SPLIT_OF_WORD = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_LINES_OF_ITEM = 6
_HELLASWAG_LABELS = ("0", "1", "2", "3")


class LocalDataError(ValueError):
    """Files of a task that are not there, or can't be read."""


def require_folder(directory: Path) -> None:
    """LocalDataError for a place of tasks that isn't a folder."""
    if not directory.is_dir():
        raise LocalDataError(
            f"task_data {str(directory)!r} is not a folder; pass one with a folder a task in it"
        )


def task_folders(directory: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The folder of each task's files; LocalDataError, naming all, where some have none."""
    require_folder(directory)
    found = {task: _task_folder(directory, task) for task in tasks}
    missing = [repr(task) for task, folder in found.items() if folder is None]
    if missing:
        folders = "folder" if len(missing) == 1 else "folders"
        raise LocalDataError(
            f"task_data {str(directory)!r} has no {folders} {', '.join(missing)}; put the files of "
            "the task of that name there, such as validation.jsonl"
        )
    return {task: folder for task, folder in found.items() if folder is not None}


def _task_folder(directory: Path, task: str) -> Path | None:
    names = (task, _FOLDER_OF_TASK.get(task, task))
    return next((directory / name for name in names if (directory / name).is_dir()), None)


def split_files(
    folder: Path, task: str, splits: Sequence[str], evaluated: str
) -> dict[str, list[Path]]:
    """The files of each of a task's splits; those of splits that it doesn't use are left out.

    A file belongs to the split that its name begins with, or to the one that a word in its name
    stands for (winogrande_val.jsonl is "validation"). A single file without such a word is the
    split that is evaluated, and that one must be there.
    """
    paths = [path for path in sorted(folder.iterdir()) if _reader(path, task)]
    files: dict[str, list[Path]] = {split: [] for split in splits}
    for path in paths:
        split = _split_of(path.name, splits) or (evaluated if len(paths) == 1 else None)
        if split is None:
            raise LocalDataError(
                f"{path}: which split is it? Name it after one of {', '.join(splits)}, such as "
                f"{evaluated}.jsonl"
            )
        if split in files:
            files[split].append(path)
    if not files[evaluated]:
        raise LocalDataError(
            f"{folder} has no file of the split {evaluated!r}, on which {task} is evaluated; "
            f"add {evaluated}.jsonl (or .json, .parquet) to it"
        )
    return files


def read_rows(path: Path, task: str) -> list[Row]:
    """The rows of a file; LocalDataError, naming the line, where it is not what it should be."""
    reader = _reader(path, task)
    assert reader is not None, path
    rows = reader(path)
    if not rows:
        raise LocalDataError(f"{path} is empty; expected items of {task}")
    for number, row in enumerate(rows, 1):
        if row.keys() != rows[0].keys():
            differing = sorted(row.keys() ^ rows[0].keys())
            raise LocalDataError(
                f"{path}, item {number}: expected the columns {', '.join(rows[0])} as in the "
                f"first item; {', '.join(differing)} is only in one of them"
            )
    if task in _ROW_CHECKS:
        for number, row in enumerate(rows, 1):
            _ROW_CHECKS[task](path, number, row)
    return rows


def _reader(path: Path, task: str) -> Callable[[Path], list[Row]] | None:
    """What reads a file of a task; None for files that hold no data."""
    if path.name.startswith("."):
        return None
    suffix = _plain_name(path).suffix
    own = {"hellaswag": {".txt": _hellaswag_text}, "piqa": {".jsonl": _piqa_with_labels}}
    readers = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet} | own.get(task, {})
    return readers.get(suffix)


def _split_of(name: str, splits: Sequence[str]) -> str | None:
    """The split that a file's name tells; None where it tells none."""
    begun = [split for split in splits if re.match(rf"{re.escape(split)}(?![a-zA-Z0-9_])", name)]
    if begun:
        return max(begun, key=len)
    words = (_SPLIT_OF_WORD.get(word) for word in re.split(r"[^a-z]+", name.lower()))
    return next((word for word in words if word is not None), None)


def _plain_name(path: Path) -> Path:
    """The path without the suffix of a compressed file."""
    return path.with_suffix("") if path.suffix in _COMPRESSED else path


def _lines(path: Path) -> list[str]:
    """The lines of a text, without those at its end that are empty."""
    text = _text(path).rstrip()
    return text.split("\n") if text else []


def _text(path: Path) -> str:
    opened = _COMPRESSED.get(path.suffix, Path.open)
    try:
        with opened(path, "rb") as file:
            text: str = file.read().decode()
    except UnicodeDecodeError as error:
        raise LocalDataError(f"{path} is not UTF-8: {error}; convert it") from error
    except (OSError, EOFError) as error:
        raise LocalDataError(f"cannot read {path}: {error}") from error
    return text.replace("\r\n", "\n")


def _json_lines(path: Path) -> list[Row]:
    return [_json_row(path, number, line) for number, line in enumerate(_lines(path), 1)]


def _json_row(path: Path, number: int, line: str) -> Row:
    try:
        row: object = json.loads(line)
    except ValueError as error:
        raise LocalDataError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise LocalDataError(f"{path}, line {number}: expected a JSON object, got {line[:40]!r}")
    return row


def _json(path: Path) -> list[Row]:
    """A list of objects, or an object a line, which the hub calls .json too."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _json_lines(path)
    try:
        rows: list[object] = json.loads(text)
    except ValueError as error:
        raise LocalDataError(f"{path}: not JSON ({error})") from error
    return [_json_row(path, number, json.dumps(row)) for number, row in enumerate(rows, 1)]


def _parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from pyarrow.parquet import read_table  # type: ignore[import-untyped]

    try:
        return read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise LocalDataError(f"{path} can't be read as Parquet: {error}") from error


def _check_piqa(path: Path, number: int, row: Row) -> None:
    label = row.get("label")
    if not isinstance(label, int) or label not in (0, 1):
        raise LocalDataError(
            f"{path}, item {number}: {_said(label)}; expected 0 or 1, in the column label or in "
            f"{_labels_file(path).name} beside it"
        )


def _check_hellaswag(path: Path, number: int, row: Row) -> None:
    label = row.get("label")
    if str(label) not in _HELLASWAG_LABELS:
        raise LocalDataError(
            f"{path}, item {number}: {_said(label)}; expected the number of the right ending, "
            "0 to 3"
        )


def _said(label: object) -> str:
    return "no label" if label is None else f"the label is {label!r}"


# For those that lm_eval scores as wrong, or fails on without a word about where.
_ROW_CHECKS = {"piqa": _check_piqa, "hellaswag": _check_hellaswag}


def _piqa_with_labels(path: Path) -> list[Row]:
    rows, labels = _json_lines(path), _labels(path)
    if not labels:
        return rows
    if len(labels) != len(rows):
        raise LocalDataError(f"{path} has {len(rows)} items, and {len(labels)} labels beside it")
    return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]


def _labels(path: Path) -> list[int]:
    """The labels beside a PIQA file; none where there is no such file."""
    beside = _labels_file(path)
    lines = _lines(beside) if beside.is_file() else []
    for number, line in enumerate(lines, 1):
        if line.strip() not in ("0", "1"):
            raise LocalDataError(f"{beside}, line {number}: expected 0 or 1, got {line!r}")
    return [int(line) for line in lines]


def _labels_file(path: Path) -> Path:
    return path.with_name(_plain_name(path).stem + "-labels.lst")


def _hellaswag_text(path: Path) -> list[Row]:
    lines = _lines(path)
    if len(lines) % _LINES_OF_ITEM:
        raise LocalDataError(
            f"{path}, line {len(lines)}: the file ends within an item; expected "
            f"{_LINES_OF_ITEM} lines an item"
        )
    return [
        _hellaswag_item(path, first + 1, lines[first : first + _LINES_OF_ITEM])
        for first in range(0, len(lines), _LINES_OF_ITEM)
    ]


def _hellaswag_item(path: Path, number: int, lines: Sequence[str]) -> Row:
    """An item with the hub's columns; number: of its first line."""
    activity, colon, context = lines[0].partition(": ")
    if not colon:
        raise LocalDataError(
            f"{path}, line {number}: expected 'activity: context', got {lines[0][:40]!r}"
        )
    if lines[1] not in _HELLASWAG_LABELS:
        raise LocalDataError(
            f"{path}, line {number + 1}: expected the number of the right ending, 0 to 3, got "
            f"{lines[1][:40]!r}"
        )
    begun = _begun_sentence(context)
    return {
        "activity_label": activity,
        "ctx_a": context.removesuffix(begun).rstrip(),
        "ctx_b": begun,
        "endings": list(lines[2:]),
        "label": lines[1],
    }


def _begun_sentence(context: str) -> str:
    """What the endings continue: the words after the last whole sentence, if there are any.

    The text has it in lower case where the task's prompt, which needs it apart, begins it with a
    capital. A context without any whole sentence has none to tell.
    """
    *sentences, last = re.split(r"(?<=[.!?]) +", context)
    return last if sentences and not re.search(r"[.!?][\"')]*$", last) else ""
