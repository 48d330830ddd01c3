"""Many requests on one engine: each gets what it gets alone, to the last bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.config import ModelConfig
from retnet.decoding import Decoder, KernelName
from retnet.generation import generate, prefill
from retnet.model import RetNet, RetNetState
from retnet.sampling import SamplingParams
from retnet.serve.engine import Engine, Result
from retnet.serve.request import Finish, Request
from tests.cpus import needs_compiler, rows_are_independent

VOCAB = 64


def make_decoder(
    dtype: torch.dtype = torch.float32, kernel: KernelName = "auto", *, int8: bool = False
) -> Decoder:
    config = ModelConfig(vocab_size=VOCAB, d_model=64, num_layers=2, num_heads=2)
    model = RetNet(config, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.backbone.embed_tokens.weight.mul_(4)  # so that the likeliest token is not every one
    return Decoder(model.to(dtype).eval(), kernel=kernel, int8=int8)


DECODER = make_decoder()


def make_engine(decoder: Decoder = DECODER, **changes: Any) -> Engine:
    return Engine(decoder, **{"num_slots": 8, "prefill_chunk": 16, **changes})


def drawn(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCAB, (length,), generator=generator).tolist())


def mixed_requests(count: int) -> list[Request]:
    """Of many lengths and rules, greedy and seeded, some with the same beginning."""
    rules = [
        SamplingParams(temperature=0, max_tokens=20),
        SamplingParams(max_tokens=13, top_p=0.9),
        SamplingParams(max_tokens=25, temperature=1.7, top_k=7, stop_tokens=(3, 9)),
        SamplingParams(max_tokens=8, repetition_penalty=1.3, presence_penalty=0.5),
        SamplingParams(max_tokens=17, min_p=0.1, logit_bias={5: 2.0, 6: -30.0}),
    ]
    return [
        Request(
            prompt=(*(drawn(40) if seed % 3 == 0 else ()), *drawn(1 + seed * 7 % 61, seed)),
            params=rules[seed % len(rules)],
            seed=seed,
            num_logprobs=2 if seed % 2 else None,
        )
        for seed in range(count)
    ]


def told(result: Result) -> tuple[object, ...]:
    """What a client sees of a result; not what the prefix cache saved."""
    return result.tokens, result.logprobs, result.finish


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kernel", "int8"),
    [
        pytest.param("torch", False, id="torch", marks=rows_are_independent),
        pytest.param("native", False, id="native", marks=needs_compiler),
        pytest.param("native", True, id="native int8", marks=needs_compiler),
    ],
)
def test_at_once_equals_one_by_one(kernel: KernelName, int8: bool, dtype: torch.dtype) -> None:
    """64 requests on 8 slots, with a prefix cache, against each on an engine of its own."""
    decoder = make_decoder(dtype, kernel, int8=int8)
    requests = mixed_requests(64)
    together = make_engine(decoder).generate(requests)
    for request, result in zip(requests, together, strict=True):
        [alone] = make_engine(decoder, num_slots=1, prefix_cache_bytes=0).generate([request])
        assert told(result) == told(alone)


def test_greedy_equals_generate() -> None:
    """The engine reads prompts in pieces and steps rows in place; the library's loop does not."""
    model, prompt = make_decoder().model, drawn(50)
    params = SamplingParams(temperature=0, max_tokens=30)
    [result] = make_engine().generate([Request(prompt=prompt, params=params)])
    expected = [int(token) for token in generate(model, torch.tensor([prompt]), params)]
    assert list(result.tokens) == expected
    assert result.finish == Finish.LENGTH


def test_a_known_beginning_is_not_read_again() -> None:
    """Whole pieces of the beginning, and a whole prompt; the results are those without a cache."""
    engine, params = make_engine(), SamplingParams(max_tokens=6)
    start = drawn(100)
    first = Request(prompt=start, params=params, seed=4)
    longer = Request(prompt=(*start, *drawn(30, 1)), params=params, seed=5)
    cached = []
    for request in (first, first, longer):
        [result] = engine.generate([request])
        assert result.prompt is not None
        cached.append(result.prompt.num_cached)
        [cold] = make_engine(prefix_cache_bytes=0).generate([request])
        assert told(result) == told(cold)
    assert cached == [0, 100, 96]
    stats = engine.stats()
    assert (stats.prefix_hits, stats.prefix_misses) == (2, 1)


def test_the_cache_stays_within_its_bytes() -> None:
    """The oldest beginnings leave; one state more than fits is never held."""
    slot_bytes = make_engine().stats().slot_bytes
    engine = make_engine(prefix_cache_bytes=3 * slot_bytes + 3 * 4 * VOCAB)
    for seed in range(6):
        engine.generate([Request(prompt=drawn(70, seed), params=SamplingParams(max_tokens=1))])
        assert engine.stats().prefix_bytes <= 3 * slot_bytes + 3 * 4 * VOCAB
    assert engine.stats().num_prefixes == 3


def test_equal_prompts_at_once_are_read_once() -> None:
    """As `n` answers to one prompt are asked for."""
    request = Request(prompt=drawn(200), params=SamplingParams(max_tokens=3))
    results = make_engine().generate([replace(request, seed=seed) for seed in range(4)])
    read = [200 - result.prompt.num_cached for result in results if result.prompt is not None]
    assert sum(read) == 200


def test_a_long_prompt_does_not_stall_others() -> None:
    """While 60 pieces are read, a row gets its token every step, and a short prompt comes in."""
    engine = make_engine(prefix_cache_bytes=0)
    writer = engine.add(Request(prompt=drawn(3), params=SamplingParams(max_tokens=None)))
    engine.step()
    long = engine.add(Request(prompt=drawn(960, 1), params=SamplingParams(max_tokens=1)))
    engine.step()
    short = engine.add(Request(prompt=drawn(5, 2), params=SamplingParams(max_tokens=1)))
    first_output: dict[int, int] = {}
    for step in range(70):
        outputs = engine.step()
        assert writer in {output.request_id for output in outputs}
        for output in outputs:
            first_output.setdefault(output.request_id, step)
    assert first_output[short] <= 3
    assert 55 < first_output[long] < 70


def test_abort_frees_the_slot_for_the_next_step() -> None:
    engine = make_engine(num_slots=1)
    endless = SamplingParams(max_tokens=None)
    first = engine.add(Request(prompt=drawn(3), params=endless))
    waiting = engine.add(Request(prompt=drawn(4), params=endless))
    engine.step()
    assert (engine.stats().num_writing, engine.stats().num_waiting) == (1, 1)
    engine.abort(first)
    outputs = engine.step()
    assert [(each.request_id, each.finish) for each in outputs] == [
        (first, Finish.ABORTED),
        (waiting, None),
    ]
    engine.abort(waiting)
    engine.abort(waiting)
    engine.abort(12345)
    assert [each.finish for each in engine.step()] == [Finish.ABORTED]
    assert not engine.has_work


def assert_states_near(one: RetNetState | None, other: RetNetState) -> None:
    assert one is not None
    assert one.position.tolist() == other.position.tolist()
    for layer, expected in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(layer, expected, rtol=1e-4, atol=1e-5)


def test_states_go_out_and_come_in() -> None:
    """A text in two requests, the second from the first's state, equals the text in one."""
    params = SamplingParams(temperature=0, max_tokens=10)
    request = Request(prompt=drawn(37), params=params, returns_state=True)
    [first] = make_engine().generate([request])
    model = DECODER.model
    read = torch.tensor([request.prompt])
    assert first.prompt is not None
    assert_states_near(first.prompt.state, prefill(model, read)[1])
    read = torch.tensor([[*request.prompt, *first.tokens[:-1]]])
    assert_states_near(first.state, prefill(model, read)[1])
    rest = (first.tokens[-1], *drawn(5, 9))
    [second] = make_engine().generate([Request(prompt=rest, params=params, state=first.state)])
    whole = torch.tensor([[*request.prompt, *first.tokens, *drawn(5, 9)]])
    expected = [int(token) for token in generate(model, whole, params)]
    assert list(second.tokens) == expected


def test_only_reading() -> None:
    """max_tokens 0: no token, the state after the prompt."""
    request = Request(
        prompt=drawn(20), params=SamplingParams(max_tokens=0), returns_state=True, num_logprobs=0
    )
    [result] = make_engine().generate([request])
    assert result.tokens == () and result.finish == Finish.LENGTH
    assert_states_near(result.state, prefill(DECODER.model, torch.tensor([request.prompt]))[1])


@torch.no_grad()
def log_probabilities(tokens: tuple[int, ...]) -> Tensor:
    return DECODER.model(torch.tensor([tokens]))[0][0].log_softmax(dim=-1)


def test_logprobs_are_those_of_the_model() -> None:
    """Of prompt and generated tokens, before temperature and cuts, across pieces of the prompt."""
    request = Request(
        prompt=drawn(45),
        params=SamplingParams(max_tokens=5, temperature=0.3, top_k=4),
        num_logprobs=3,
        prompt_logprobs=True,
    )
    [result] = make_engine().generate([request])
    assert result.prompt is not None
    found = [*result.prompt.logprobs, *result.logprobs]
    text = (*request.prompt, *result.tokens)
    assert len(found) == len(text) and found[0] is None
    expected = log_probabilities(text)
    for place, logprob in enumerate(found[1:], start=1):
        assert logprob is not None and logprob.token == text[place]
        row = expected[place - 1]
        assert logprob.logprob == pytest.approx(float(row[text[place]]), abs=1e-4)
        assert [value for _, value in logprob.top] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-4
        )


def test_a_model_that_gives_no_numbers_fails_its_request_alone() -> None:
    decoder = make_decoder()
    engine = make_engine(decoder)
    bad_state = prefill(decoder.model, torch.tensor([[1]]))[1]
    bad_state.layers[0].fill_(torch.nan)
    params = SamplingParams(max_tokens=4)
    results = engine.generate(
        [
            Request(prompt=drawn(3), params=params, state=bad_state),
            Request(prompt=drawn(3), params=params),
        ]
    )
    assert [result.finish for result in results] == [Finish.FAILED, Finish.LENGTH]
    assert engine.stats().num_writing == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ()}, "at least one token"),
        ({"prompt": (VOCAB,)}, r"in \[0, 64\)"),
        ({"prompt": (-1,)}, r"in \[0, 64\)"),
        ({"params": SamplingParams(logit_bias={VOCAB: 1.0})}, r"in \[0, 64\)"),
        ({"num_logprobs": 21}, "num_logprobs must be"),
        ({"prompt_logprobs": True}, "needs num_logprobs"),
        ({"seed": -1}, "seed must be"),
        ({"state": DECODER.new_state(2)}, "one row"),
    ],
)
def test_bad_requests(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_engine().add(Request(**{"prompt": (1,), "params": SamplingParams(), **changes}))


@pytest.mark.parametrize("name", ["num_slots", "prefill_chunk", "prefix_cache_bytes"])
def test_bad_sizes(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_engine(**{name: -1})
