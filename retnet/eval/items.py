"""Whether the items of loaded tasks can be scored, found out before any of them is.

lm_eval counts an item whose right choice is out of range as one that the model got wrong.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask  # type: ignore[import-untyped]

# What lm_eval raises where an item lacks a column or has another kind of value in it.
DATA_ERRORS = (LookupError, TypeError, ValueError, SyntaxError, AttributeError, TemplateError)
_SPLITS_OF_EXAMPLES = ("fewshot_split", "training_split", "validation_split", "test_split")
_SPLITS_OF_ITEMS = ("test_split", "validation_split")


class ItemError(ValueError):
    """An item of a task that can't be scored, or solved examples that are not there."""


def check_items(name: str, task: Any, *, limit: int | None, num_fewshot: int) -> None:
    """Refuse a loaded task, as lm_eval's object, some items of which would be scored wrongly.

    limit: how many items are scored; None for all. num_fewshot: solved examples before each.
    Raises ItemError for the first item whose answer is none of its choices, and where there are
    not enough examples.
    """
    if not isinstance(task, ConfigurableTask):
        return
    examples = list(task.sampler.fewshot_docs()) if num_fewshot else []
    if num_fewshot:
        _check_number_of_examples(name, task, len(examples), num_fewshot)
    # A task with a rule of its own for right and wrong may have answers of another kind.
    if task.OUTPUT_TYPE == "multiple_choice" and not callable(task.get_config("process_results")):
        _check_answers(_place(name, task, _SPLITS_OF_ITEMS), task, islice(task.eval_docs, limit))
        if _examples_are_items(task):
            _check_answers(_place(name, task, _SPLITS_OF_EXAMPLES), task, examples)


def _examples_are_items(task: Any) -> bool:
    """Whether the examples come from the data too, and their answers are told as the items' are."""
    examples = task.fewshot_cfg
    return examples.samples is None and all(
        own in (None, task.get_config(key))
        for key, own in (
            ("doc_to_text", examples.doc_to_text),
            ("doc_to_target", examples.doc_to_target),
            ("doc_to_choice", examples.doc_to_choice),
        )
    )


def _check_number_of_examples(name: str, task: Any, found: int, wanted: int) -> None:
    test_split = task.get_config("test_split")
    # An item is no example for itself.
    beside = test_split is not None and task.get_config("fewshot_split") == test_split
    if found < wanted + beside:
        place = _place(name, task, _SPLITS_OF_EXAMPLES)
        raise ItemError(
            f"{name}: {wanted} solved examples wanted before each item, and {place} has {found}"
            f"{', the item among them' if beside else ''}; add some, or set num_fewshot lower"
        )


def _check_answers(place: str, task: Any, items: Iterable[Any]) -> None:
    for number, item in enumerate(items, 1):
        try:
            answer = (task.doc_to_text if task.multiple_input else task.doc_to_target)(item)
            choices = task.doc_to_choice(item)
        except DATA_ERRORS as error:
            raise ItemError(
                f"{place}, item {number} doesn't fit the task ({type(error).__name__}: {error}); "
                "it needs the columns and values that the data set has on the hub"
            ) from error
        if not all(isinstance(choice, str) for choice in choices):
            raise ItemError(f"{place}, item {number}: expected texts to choose from, got {choices}")
        if not _is_one_of(choices, answer):
            raise ItemError(
                f"{place}, item {number}: {_said(task, answer)}; expected the number of the right "
                f"choice, 0 to {len(choices) - 1}"
            )


def _is_one_of(choices: Sequence[str], answer: object) -> bool:
    """Whether lm_eval understands an answer: the number of a choice, several such, or its text."""
    if isinstance(answer, str):
        return answer in choices
    numbers = answer if isinstance(answer, list) else [answer]
    return bool(numbers) and all(
        isinstance(number, int) and 0 <= number < len(choices) for number in numbers
    )


def _said(task: Any, answer: object) -> str:
    """An answer that doesn't do, in words."""
    column = task.get_config("doc_to_target")
    if answer is None:
        return "no answer"
    # lm_eval takes the name of a column that isn't there for the answer itself.
    if answer == column and not task.multiple_input:
        return f"no column {column!r}"
    return f"the answer is {answer!r}"


def _place(name: str, task: Any, splits: Sequence[str]) -> str:
    """Where the first of some splits that a task has comes from: a file, if there is one."""
    split = next((found for key in splits if (found := task.get_config(key))), "")
    files = (task.get_config("dataset_kwargs") or {}).get("files", {}).get(split, [])
    if len(files) == 1:
        return str(files[0])
    folder = f" in {Path(files[0]).parent}" if files else ""
    return f"split {split!r} of {name}{folder}"
