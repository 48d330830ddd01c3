"""Prompts read in pieces, steps, batches of unequal prompts, and how a token is chosen."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retnet.config import ModelConfig
from retnet.generation import generate, prefill, step
from retnet.model import RetNet, RetNetState
from retnet.sampling import SamplingParams, choose, sample

VOCAB = 19
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def make_model(**changes: Any) -> RetNet:
    base: dict[str, Any] = {
        "vocab_size": VOCAB,
        "d_model": 16,
        "num_layers": 2,
        "num_heads": 2,
        "decay": (0.8, 0.99),
        "score_norm": "paper",
    }
    config = ModelConfig(**{**base, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(0)).double().eval()


MODEL = make_model()


def drawn_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


PROMPTS = [drawn_tokens(n, seed=n) for n in (7, 1, 12, 3)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generated(prompts: Any, params: SamplingParams, seed: int = 0) -> list[list[int]]:
    """[tokens, B]."""
    tokens = generate(MODEL, prompts, params, generator=seeded(seed))
    return [chosen.tolist() for chosen in tokens]


def generated_alone(prompt: Tensor, params: SamplingParams) -> list[int]:
    return [chosen for (chosen,) in generated([prompt], params)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def assert_same_state(actual: RetNetState, expected: RetNetState) -> None:
    assert torch.equal(actual.position, expected.position)
    for mine, theirs in zip(actual.layers, expected.layers, strict=True):
        assert_close(mine, theirs)


# Reading


@settings(max_examples=25)
@given(piece=st.integers(1, 40), cut=st.integers(1, 29))
def test_prefill_in_any_pieces(piece: int, cut: int) -> None:
    tokens = drawn_tokens(2, 30)
    logits, expected_state = MODEL(tokens)
    first, state = prefill(MODEL, tokens[:, :cut], piece=piece)
    assert_close(first, logits[:, cut - 1])
    last, state = prefill(MODEL, tokens[:, cut:], state, piece=piece)
    assert_close(last, logits[:, -1])
    assert_same_state(state, expected_state)


def test_a_chain_of_steps_is_prefill() -> None:
    tokens = drawn_tokens(3, 25)
    expected, expected_state = prefill(MODEL, tokens)
    logits, state = prefill(MODEL, tokens[:, :1])
    for n in range(1, 25):
        logits, state = step(MODEL, tokens[:, n], state)
        assert_close(logits, MODEL(tokens[:, : n + 1])[0][:, -1])
    assert_close(logits, expected)
    assert_same_state(state, expected_state)


@pytest.mark.parametrize("piece", [1, 4, 5, 100])
def test_prefill_of_left_padded_rows(piece: int) -> None:
    """Each row as it is alone, even where whole pieces of it are padding."""
    width = 15
    tokens = torch.stack([torch.cat([drawn_tokens(width - len(p)), p]) for p in PROMPTS])
    mask = torch.stack([torch.arange(width) >= width - len(p) for p in PROMPTS])
    logits, state = prefill(MODEL, tokens, mask=mask, piece=piece)
    for row, prompt in enumerate(PROMPTS):
        alone, alone_state = prefill(MODEL, prompt[None])
        assert_close(logits[row : row + 1], alone)
        assert_same_state(state.rows([row]), alone_state)


def test_a_mask_without_padding_may_follow_a_state() -> None:
    tokens = drawn_tokens(2, 8)
    _, state = prefill(MODEL, tokens[:, :3])
    masked, _ = prefill(MODEL, tokens[:, 3:], state, mask=torch.ones(2, 5, dtype=torch.bool))
    assert_close(masked, prefill(MODEL, tokens)[0])


def test_the_state_does_not_grow() -> None:
    """Of a prompt of one token, and after 300 more."""
    logits, state = prefill(MODEL, drawn_tokens(2, 1))
    num_bytes = state.num_bytes
    assert num_bytes == 2 * 8 * MODEL.config.state_numbers
    for _ in range(300):
        logits, state = step(MODEL, logits.argmax(dim=-1), state)
        assert state.num_bytes == num_bytes
    assert state.position.tolist() == [301, 301]
    assert logits.isfinite().all()


def test_reading_leaves_the_state_before_it_alone() -> None:
    """One prompt, continued twice."""
    _, state = prefill(MODEL, drawn_tokens(2, 6))
    before = [layer.clone() for layer in state.layers]
    first, _ = step(MODEL, torch.tensor([1, 2]), state)
    again, _ = step(MODEL, torch.tensor([1, 2]), state)
    assert torch.equal(first, again)
    assert all(torch.equal(x, y) for x, y in zip(state.layers, before, strict=True))


def test_reading_needs_no_graph() -> None:
    logits, state = prefill(MODEL, drawn_tokens(2, 6))
    assert not logits.requires_grad
    assert not any(layer.requires_grad for layer in state.layers)
    assert torch.is_grad_enabled()


def test_training_may_begin_where_reading_ended() -> None:
    """A state is a value: one that prefill made may be the start of a differentiated call."""
    _, state = prefill(MODEL, drawn_tokens(2, 6))
    model = make_model()
    logits, _ = model(drawn_tokens(2, 3), state)
    logits.sum().backward()
    assert all(x.grad is not None for x in model.parameters())


# Generating


def test_greedy_generation_by_hand() -> None:
    """Each token the likeliest after all before it, read from the beginning."""
    tokens = drawn_tokens(2, 5)
    for chosen in generate(MODEL, tokens, GREEDY):
        assert torch.equal(chosen, MODEL(tokens)[0][:, -1].argmax(dim=-1))
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
    assert tokens.shape == (2, 17)


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_batch_of_unequal_prompts_is_each_prompt_alone(penalty: float) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, repetition_penalty=penalty)
    together = generated(PROMPTS, params)
    for row, prompt in enumerate(PROMPTS):
        assert [chosen[row] for chosen in together] == generated_alone(prompt, params)


def test_a_tensor_of_prompts_is_a_list_of_its_rows() -> None:
    tokens = drawn_tokens(3, 6)
    assert generated(tokens, GREEDY) == generated(list(tokens), GREEDY)


def test_padding_is_no_repetition() -> None:
    """A shorter prompt is padded with token 0, which must not count as seen."""
    params = SamplingParams(temperature=0, max_tokens=8, repetition_penalty=1e6)
    short, long = torch.tensor([5, 6]), drawn_tokens(15)
    assert [x[0] for x in generated([short, long], params)] == generated_alone(short, params)


def test_rows_end_one_by_one() -> None:
    """At their stop tokens, which are still given out; -1 from then on; then all is over."""
    free = generated(PROMPTS, SamplingParams(temperature=0, max_tokens=40))
    stops = (free[3][0], free[6][2])
    ends = [
        next((n for n, chosen in enumerate(free) if chosen[row] in stops), 40)
        for row in range(len(PROMPTS))
    ]
    assert len(set(ends)) > 1
    params = SamplingParams(temperature=0, max_tokens=40, stop_tokens=stops)
    actual = generated(PROMPTS, params)
    assert len(actual) == min(max(ends) + 1, 40)
    for row, end in enumerate(ends):
        column = [chosen[row] for chosen in actual]
        expected = [chosen[row] for chosen in free[: end + 1]]
        assert column == expected + [-1] * (len(actual) - len(expected))


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_max_tokens(max_tokens: int) -> None:
    assert len(generated(PROMPTS, SamplingParams(max_tokens=max_tokens))) == max_tokens


def test_no_limit() -> None:
    params = SamplingParams(temperature=0, max_tokens=None)
    endless = generate(MODEL, drawn_tokens(1, 2), params)
    assert len(list(islice(endless, 300))) == 300


def test_seeds_reproduce() -> None:
    params = SamplingParams(max_tokens=20)
    assert generated(PROMPTS, params, seed=1) == generated(PROMPTS, params, seed=1)
    assert generated(PROMPTS, params, seed=1) != generated(PROMPTS, params, seed=2)


def test_a_given_generator_leaves_the_default_one_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    generated(PROMPTS, SamplingParams(max_tokens=3))
    assert torch.equal(torch.rand(1), expected)


def test_repetition_penalty_by_hand() -> None:
    """Positive scores of tokens in the prompt or the text are divided, negative ones multiplied."""
    tokens = drawn_tokens(1, 4)
    params = SamplingParams(temperature=0, max_tokens=15, repetition_penalty=1.3)
    for chosen in generate(MODEL, tokens, params):
        logits = MODEL(tokens)[0][0, -1].tolist()
        for token in set(tokens[0].tolist()):
            logits[token] *= 1 / 1.3 if logits[token] > 0 else 1.3
        assert chosen.item() == max(range(VOCAB), key=logits.__getitem__)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)


def test_int32_prompts() -> None:
    params = SamplingParams(temperature=0, max_tokens=4, repetition_penalty=1.1)
    tokens = drawn_tokens(2, 5)
    assert generated(tokens.int(), params) == generated(tokens, params)


# Choosing

LOGITS = torch.randn(6, 50, generator=seeded(3)) * 2


@pytest.mark.parametrize(
    "greedy",
    [
        {"temperature": 0},
        {"temperature": 1e-4},
        {"temperature": 1e-30},
        {"temperature": 1e-45},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
    ],
    ids=str,
)
def test_what_is_greedy(greedy: dict[str, float]) -> None:
    params = SamplingParams(**greedy)
    for seed in range(20):
        assert torch.equal(sample(LOGITS, params, seeded(seed)), LOGITS.argmax(dim=-1))


def test_top_k_keeps_k_tokens_where_scores_tie() -> None:
    """bf16 logits often do; greedy decoding must not become a toss."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 3.0]])
    seen = [
        {int(sample(logits, SamplingParams(top_k=k), seeded(seed))) for seed in range(60)}
        for k in (1, 2)
    ]
    assert [len(tokens) for tokens in seen] == [1, 2]


def frequencies(logits: Tensor, params: SamplingParams, draws: int = 20_000) -> Tensor:
    """How often each token [vocab] of one row of scores is chosen."""
    chosen = sample(logits.expand(draws, -1), params, seeded())
    return torch.bincount(chosen, minlength=len(logits)) / draws


FILTERS: dict[str, tuple[dict[str, float], list[int]]] = {
    "none": ({}, [0, 1, 2, 3, 4]),
    "top_k": ({"top_k": 3}, [0, 1, 2]),
    "top_k of all": ({"top_k": 5}, [0, 1, 2, 3, 4]),
    "top_k of more": ({"top_k": 50}, [0, 1, 2, 3, 4]),
    "top_p within the first": ({"top_p": 0.35}, [0]),
    "top_p that the second reaches": ({"top_p": 0.6}, [0, 1]),
    "top_p of nearly all": ({"top_p": 0.97}, [0, 1, 2, 3, 4]),
    "min_p": ({"min_p": 0.3}, [0, 1, 2]),
    "top_k within min_p": ({"top_k": 2, "min_p": 0.2}, [0, 1]),
    "min_p within top_p": ({"top_p": 0.9, "min_p": 0.6}, [0, 1]),
}
PROBABILITIES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize("chosen", FILTERS)
def test_frequencies_are_the_probabilities_of_what_is_kept(chosen: str) -> None:
    """Chi square with at most 4 degrees of freedom: above 25 once in twenty thousand times."""
    changes, kept = FILTERS[chosen]
    order = torch.tensor([3, 1, 4, 0, 2])  # Not sorted.
    actual = frequencies(PROBABILITIES.log()[order], SamplingParams(**changes))
    expected = torch.zeros(5)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    expected = expected[order]
    assert (actual[expected == 0] == 0).all()
    there = expected > 0
    assert (20_000 * (actual - expected).square()[there] / expected[there]).sum() < 25


def test_top_p_stops_where_it_is_reached() -> None:
    """Two of four equal tokens reach one half."""
    for size, kept in ((0.25, 1), (0.5, 2), (0.75, 3), (0.76, 4)):
        assert (frequencies(torch.zeros(4), SamplingParams(top_p=size)) > 0).sum() == kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_scores(temperature: float) -> None:
    logits = torch.tensor([1.0, -2.0, 0.5, 3.0])
    expected = (logits / temperature).softmax(dim=0)
    actual = frequencies(logits, SamplingParams(temperature=temperature))
    assert (20_000 * (actual - expected).square() / expected).sum() < 23


def test_filters_look_at_each_row() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0], [5.0, 0.0, 4.9]]).repeat(200, 1)
    chosen = sample(logits, SamplingParams(min_p=0.5), seeded()).view(-1, 2)
    assert set(chosen[:, 0].tolist()) == {1}
    assert set(chosen[:, 1].tolist()) == {0, 2}


def test_impossible_tokens_are_never_chosen() -> None:
    logits = torch.full((500, 6), -torch.inf)
    logits[:, 4] = logits[:, 2] = 1.0
    assert set(sample(logits, SamplingParams(), seeded()).tolist()) == {2, 4}


def test_scores_of_any_float_dtype_are_left_alone() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        logits = LOGITS.to(dtype)
        before = logits.clone()
        params = SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01)
        chosen = sample(logits, params, seeded())
        assert (chosen.dtype, chosen.shape) == (torch.int64, (6,))
        assert torch.equal(logits, before)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature must be >= 0 and finite; 0 is greedy, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"temperature": float("inf")}, "temperature must be .* got inf"),
        ({"top_k": -1}, "top_k must be >= 0.* got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\].* got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\].* got 1.1"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\].* got -0.1"),
        ({"min_p": 2}, r"min_p must be in \[0, 1\].* got 2"),
        ({"repetition_penalty": 0}, "repetition_penalty must be > 0 .* got 0"),
        ({"max_tokens": -1}, "max_tokens must be >= 0, or None for no limit, got -1"),
        ({"stop": ("a", "")}, "stop must be .* not empty"),
        ({"stop": "###"}, "stop must be .* got '###'"),
    ],
    ids=str,
)
def test_bad_params(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**changes)


STATE = prefill(MODEL, drawn_tokens(2, 3))[1]
NO_TOKENS = torch.zeros(2, 0, dtype=torch.int64)
RIGHT_PADDED = torch.tensor([[True, True, False], [True, True, True]])
LEFT_PADDED = RIGHT_PADDED.flip(1)
BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "an empty prompt": (lambda: prefill(MODEL, NO_TOKENS), r"T >= 1, got \[2, 0\]"),
    "a prompt without its batch": (lambda: prefill(MODEL, NO_TOKENS[0]), r"\[B, T\].* got \[0\]"),
    "padding on the right": (
        lambda: prefill(MODEL, drawn_tokens(2, 3), mask=RIGHT_PADDED),
        "mask must have its padding on the left",
    ),
    "padding after a state": (
        lambda: prefill(MODEL, drawn_tokens(2, 3), STATE, mask=LEFT_PADDED),
        "mask must not pad rows that have a state",
    ),
    "a mask of another length": (
        lambda: prefill(MODEL, drawn_tokens(2, 4), mask=LEFT_PADDED),
        "mask must be",
    ),
    "no piece": (lambda: prefill(MODEL, drawn_tokens(2, 3), piece=0), "piece must be"),
    "a negative piece": (lambda: prefill(MODEL, drawn_tokens(2, 3), piece=-1), "piece must be"),
    "a step of other rows": (
        lambda: step(MODEL, torch.tensor([1]), STATE),
        "state must have 2 layers and 1 rows",
    ),
    "no prompts": (lambda: list(generate(MODEL, [], GREEDY)), "at least one token"),
    "one prompt of none": (
        lambda: list(generate(MODEL, [PROMPTS[0], NO_TOKENS[0]], GREEDY)),
        "at least one token each, got an empty one; begin with a bos token",
    ),
    "prompts without tokens": (
        lambda: list(generate(MODEL, NO_TOKENS, GREEDY)),
        "at least one token",
    ),
    "a prompt without its batch to generate": (
        lambda: list(generate(MODEL, PROMPTS[0], GREEDY)),
        "prompts must be",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_argument(bad: str) -> None:
    call, message = BAD[bad]
    with pytest.raises(ValueError, match=message):
        call()


def test_rows_are_chosen_each_by_its_own() -> None:
    """With different rules in one batch, a row gets what it gets alone, whatever is beside it."""
    rules = [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_k=3, temperature=2.0),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2, top_k=400),
        SamplingParams(top_p=0.999, temperature=5.0),
    ]
    logits = torch.randn(6, 1000, generator=seeded(5)) * 3
    for seed in range(20):
        uniform = torch.rand(6, dtype=torch.float64, generator=seeded(seed))
        together = choose(logits, rules, uniform)
        alone = [choose(logits[i : i + 1], rules[i : i + 1], uniform[i : i + 1]) for i in range(6)]
        assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
def test_top_p_of_a_large_vocabulary_is_that_of_a_sorted_one(top_p: float) -> None:
    """Few are looked at where few are enough; the tokens that are kept must be the same."""
    for scale in (0.1, 8.0):
        logits = torch.randn(1, 3000, generator=seeded(1)) * scale
        ordered, order = logits.double().softmax(dim=-1)[0].sort(descending=True)
        kept = set(order[: int((ordered.cumsum(0) - ordered < top_p).sum())].tolist())
        chosen = sample(logits.expand(3000, -1), SamplingParams(top_p=top_p), seeded())
        assert set(chosen.tolist()) <= kept
        uniform = torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)
        ends = choose(logits.expand(2, -1), [SamplingParams(top_p=top_p)] * 2, uniform)
        assert ends.tolist() == [min(kept), max(kept)]


def test_penalties_by_count_by_hand() -> None:
    """Frequency counts what was generated, presence whether it was; the prompt counts for none."""
    tokens, start = drawn_tokens(1, 4), 4
    params = SamplingParams(
        temperature=0,
        max_tokens=20,
        frequency_penalty=0.05,
        presence_penalty=0.1,
        logit_bias={3: 0.2, 5: -50.0},
    )
    for chosen in generate(MODEL, tokens, params):
        logits = MODEL(tokens)[0][0, -1]
        counts = torch.bincount(tokens[0, start:], minlength=VOCAB)
        logits = logits - 0.05 * counts - 0.1 * (counts > 0)
        logits[3] += 0.2
        logits[5] -= 50
        assert chosen.item() == logits.argmax().item() != 5
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
