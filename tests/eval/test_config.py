"""What an evaluation may be asked for."""

from typing import Any

import pytest

from retnet.eval.config import EvalConfig


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": " , "}, "tasks must name at least one, got ' , '"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0"),
        ({"max_length": 1}, "max_length must be at least 2"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EvalConfig(**settings)


def test_names_of_tasks() -> None:
    assert EvalConfig(tasks="b, a,,b").task_names == ("b", "a")


@pytest.mark.parametrize(
    ("asked", "own", "number"),
    [(None, None, 0), (None, 5, 5), (2, None, 2), (2, 5, 2), (0, 5, 0), (2, 0, 0)],
)
def test_number_of_solved_examples(asked: int | None, own: int | None, number: int) -> None:
    """As lm_eval has it: what is asked for wins, but over a task's own 0."""
    assert EvalConfig(num_fewshot=asked).num_examples(own) == number
