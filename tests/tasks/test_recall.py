"""Every task: what its examples hold, that they can be solved, and that they repeat."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retnet.loss import IGNORED
from retnet.tasks.draws import TEST_SEED, distinct, generator, leaving_out, power_law_places
from retnet.tasks.recall import AssociativeRecall, Copying, Examples, Induction, Needle, Task

TASKS: list[Task] = [
    AssociativeRecall(),
    AssociativeRecall(length=32, num_pairs=2, vocab_size=64),
    AssociativeRecall(length=512, num_pairs=64),
    AssociativeRecall(length=8, num_pairs=2, vocab_size=6, random_filler=False),
    Copying(),
    Copying(num_copied=1, vocab_size=200),
    Induction(),
    Induction(length=3, vocab_size=2),
    Needle(),
    Needle(length=3, depth=1.0, vocab_size=4),
]
each_task = pytest.mark.parametrize("task", TASKS, ids=str)


@st.composite
def recall_tasks(draw: Callable[[st.SearchStrategy[int]], int]) -> AssociativeRecall:
    num_pairs = draw(st.integers(1, 9))
    return AssociativeRecall(
        num_pairs=num_pairs,
        length=2 * draw(st.integers(2 * num_pairs, 2 * num_pairs + 20)),
        vocab_size=draw(st.integers(2 * num_pairs + 2, 2 * num_pairs + 40)),
        power=draw(st.sampled_from([0.01, 1, 3])),
        random_filler=draw(st.booleans()),
    )


def answered(tokens: Tensor) -> int:
    """What stood behind the last of the tokens when it came before; tokens: [T], asked at T - 1."""
    places = (tokens[:-1] == tokens[-1]).nonzero()[:, 0].tolist()
    assert len(places) == 1, "what is asked for must have come exactly once before"
    return int(tokens[places[0] + 1])


def copied(tokens: Tensor) -> int:
    """What comes next when a string is written again behind the id 0."""
    separator = int((tokens == 0).nonzero()[0, 0])
    return int(tokens[len(tokens) - 1 - separator])


def share_right(examples: Examples, solve: Callable[[Tensor], int]) -> float:
    """How often a solver that sees the tokens up to a question gives the target."""
    questions = (examples.targets != IGNORED).nonzero().tolist()
    right = [
        solve(examples.tokens[row, : place + 1]) == int(examples.targets[row, place])
        for row, place in questions
    ]
    return sum(right) / len(right)


@each_task
def test_examples_repeat_and_differ(task: Task) -> None:
    first, again = (task.batch(16, seed=1, step=2) for _ in range(2))
    assert torch.equal(first.tokens, again.tokens) and torch.equal(first.targets, again.targets)
    assert first.tokens.dtype == first.targets.dtype == torch.int64
    assert first.tokens.shape == first.targets.shape
    assert first.tokens.min() >= 0 and first.tokens.max() < task.vocab_size
    for seed, step in ((2, 2), (1, 3), (2, 1), (TEST_SEED, 2)):
        other = task.batch(16, seed=seed, step=step)
        assert not torch.equal(first.tokens, other.tokens)


@each_task
def test_can_be_solved(task: Task) -> None:
    """Who reads back to where a key stood has every answer, from tokens up to the question."""
    solve = copied if isinstance(task, Copying) else answered
    assert share_right(task.batch(16, seed=3, step=0), solve) == 1.0


@each_task
def test_other_answers_are_wrong(task: Task) -> None:
    """The solver is right because targets are, not because of how it is asked."""
    tokens, targets = task.batch(16, seed=3, step=0)
    moved = torch.where(targets == IGNORED, IGNORED, (targets + 1) % task.vocab_size)
    solve = copied if isinstance(task, Copying) else answered
    assert share_right(Examples(tokens, moved), solve) == 0.0


@given(task=recall_tasks(), step=st.integers(0, 2**40))
def test_associative_recall(task: AssociativeRecall, step: int) -> None:
    tokens, targets = task.batch(5, seed=0, step=step)
    behind, half = 2 * task.num_pairs, task.vocab_size // 2
    keys, values = tokens[:, 0:behind:2], tokens[:, 1:behind:2]
    assert tokens.shape == (5, task.length)
    assert keys.min() >= 1 and keys.max() < half
    assert half <= values.min() and values.max() < task.vocab_size
    for row in range(5):
        assert len(set(keys[row].tolist())) == len(set(values[row].tolist())) == task.num_pairs
        asked = (targets[row] != IGNORED).nonzero()[:, 0]
        assert len(asked) == task.num_pairs
        assert (asked >= behind).all() and (asked % 2 == 0).all()
        pairs = dict(zip(keys[row].tolist(), values[row].tolist(), strict=True))
        assert {int(tokens[row, place]): int(targets[row, place]) for place in asked} == pairs
        # Twice, as a key and as a question: filler is never a key.
        assert torch.isin(tokens[row], keys[row]).sum() == behind
        if not task.random_filler:
            assert (tokens[row] == 0).sum() == task.length - 3 * task.num_pairs


def test_queries_come_soon_by_a_power_law() -> None:
    """The first key's place is drawn first: x with a chance that goes as (x + 1)^(power - 1)."""
    _, targets = AssociativeRecall(length=64, num_pairs=4, power=0.01).batch(8192, seed=0, step=0)
    nearest = (targets[:, 8] != IGNORED).float().mean()
    farthest = (targets[:, 62] != IGNORED).float().mean()
    assert nearest > 0.6 > 0.06 > farthest > 0.01
    _, targets = AssociativeRecall(length=64, num_pairs=4, power=1.0).batch(8192, seed=0, step=0)
    shares = (targets[:, 8::2] != IGNORED).float().mean(0)
    assert (shares - 4 / 28).abs().max() < 0.02


def test_places_of_a_power_law() -> None:
    """Of three places with chances 1, 2^-1/2 and 3^-1/2, how often each pair comes, in order."""
    rng = generator(0, 0)
    drawn = power_law_places(rng, 0.5, num_places=3, num_rows=200_000, num_columns=2)
    chances = torch.arange(1, 4, dtype=torch.float64) ** -0.5
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            left = chances.sum() - chances[first]
            expected = chances[first] / chances.sum() * chances[second] / left
            share = ((drawn[:, 0] == first) & (drawn[:, 1] == second)).mean()
            assert abs(share - float(expected)) < 0.004


def test_distinct_numbers_are_evenly_likely() -> None:
    drawn = distinct(generator(0, 0), 5, 9, num_rows=100_000, num_columns=3)
    assert drawn.min() == 5 and drawn.max() == 8
    assert all(len(set(row)) == 3 for row in drawn[:100].tolist())
    codes = torch.from_numpy(drawn[:, 0] * 100 + drawn[:, 1] * 10 + drawn[:, 2])
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert (counts / 100_000 - 1 / 24).abs().max() < 0.003


@given(taken=st.sets(st.integers(0, 30), max_size=31).map(list), data=st.data())
def test_leaving_out(taken: list[int], data: st.DataObject) -> None:
    absent = torch.tensor([data.draw(st.permutations(taken))], dtype=torch.int64).numpy()
    numbers = torch.arange(40)[None].numpy()
    expected = [number for number in range(80) if number not in taken][:40]
    assert leaving_out(numbers, absent)[0].tolist() == expected


@given(num_copied=st.integers(1, 20), vocab_size=st.integers(2, 30), step=st.integers(0, 1000))
def test_copying(num_copied: int, vocab_size: int, step: int) -> None:
    task = Copying(num_copied=num_copied, vocab_size=vocab_size)
    tokens, targets = task.batch(3, seed=0, step=step)
    string = tokens[:, :num_copied]
    assert (string > 0).all() and (tokens[:, num_copied] == 0).all()
    assert torch.equal(tokens[:, num_copied + 1 :], string[:, :-1])
    assert (targets[:, :num_copied] == IGNORED).all()
    assert torch.equal(targets[:, num_copied:], string)


@given(length=st.integers(3, 40), vocab_size=st.integers(2, 30), step=st.integers(0, 1000))
def test_induction(length: int, vocab_size: int, step: int) -> None:
    tokens, targets = Induction(length=length, vocab_size=vocab_size).batch(4, seed=0, step=step)
    assert (targets[:, :-1] == IGNORED).all()
    is_trigger = tokens[:, :-1] == tokens[:, -1:]
    assert (is_trigger.sum(dim=1) == 1).all()
    place = is_trigger.int().argmax(dim=1)
    assert (place < length // 2).all()
    assert torch.equal(tokens[torch.arange(4), place + 1], targets[:, -1])


@given(
    length=st.integers(3, 200),
    depth=st.floats(0, 1),
    vocab_size=st.integers(4, 300),
    step=st.integers(0, 1000),
)
def test_needle(length: int, depth: float, vocab_size: int, step: int) -> None:
    task = Needle(length=length, depth=depth, vocab_size=vocab_size)
    tokens, targets = task.batch(4, seed=0, step=step)
    key, value = tokens[:, task.place], tokens[:, task.place + 1]
    assert abs(task.place - depth * (length - 3)) <= 0.5
    assert torch.equal(tokens[:, -1], key) and torch.equal(targets[:, -1], value)
    assert ((tokens == key[:, None]).sum(dim=1) == 2).all()
    assert (key >= 1).all() and (key < vocab_size // 2).all()
    assert (vocab_size // 2 <= value).all()
    assert (targets[:, :-1] == IGNORED).all()


def test_needle_from_end_to_end() -> None:
    assert Needle(length=100, depth=0).place == 0
    assert Needle(length=100, depth=1).place == 97


def test_seeds_and_steps_are_told_apart() -> None:
    """As one list of 32-bit words these pairs would be the same, or begin alike."""
    pairs = [(0, 1), (1, 0), (0, 2**32), (1, 2**32), (2**32, 0), (2**32, 1), (2**32 + 1, 0)]
    firsts = {int(generator(seed, step).integers(2**63)) for seed, step in pairs}
    assert len(firsts) == len(pairs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AssociativeRecall(length=15, num_pairs=4), "length must be an integer >= 16"),
        (lambda: AssociativeRecall(length=65), "length must be even"),
        (lambda: AssociativeRecall(num_pairs=0), "num_pairs must be an integer >= 1"),
        (lambda: AssociativeRecall(vocab_size=8), "vocab_size must be an integer >= 10"),
        (lambda: AssociativeRecall(power=0), "power must be > 0"),
        (lambda: Copying(num_copied=0), "num_copied must be an integer >= 1"),
        (lambda: Copying(vocab_size=1), "vocab_size must be an integer >= 2"),
        (lambda: Induction(length=2), "length must be an integer >= 3"),
        (lambda: Needle(depth=1.5), "depth must be in"),
        (lambda: Needle(vocab_size=3), "vocab_size must be an integer >= 4"),
        (lambda: Copying().batch(2, seed=-1, step=0), "seed must be >= 0"),
    ],
)
def test_refuses(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
