"""/v1/completions, asked by the official client."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import Completion

from retnet.data.tokenizer import ByteTokenizer
from retnet.generation import generate
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from tests.serve.running import RunningServer

TOKENIZER = ByteTokenizer()


def complete(client: OpenAI, prompt: Any = "Once upon", **changes: Any) -> Completion:
    asked = {"model": "tiny", "max_tokens": 12, "temperature": 0, **changes}
    return client.completions.create(prompt=prompt, **asked)


def greedy(model: RetNet, ids: list[int], num: int) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=num, stop_tokens=(TOKENIZER.eos_id,))
    tokens = [int(token) for token in generate(model, torch.tensor([ids]), params)]
    return [token for token in tokens if token != TOKENIZER.eos_id]


def test_greedy_text_is_the_models(client: OpenAI, model: RetNet) -> None:
    """Of a text, a list of texts, ids and lists of ids; bos stands before a text."""
    texts = ["Once upon", "a time"]
    ids = [[TOKENIZER.bos_id, *TOKENIZER.encode(text)] for text in texts]
    expected = [TOKENIZER.decode(greedy(model, each, 12)) for each in ids]
    assert [choice.text for choice in complete(client, texts).choices] == expected
    assert [choice.text for choice in complete(client, ids).choices] == expected
    assert complete(client, texts[0]).choices[0].text == expected[0]
    answer = complete(client, ids[1])
    assert answer.choices[0].text == expected[1]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids[1])
    assert answer.usage.completion_tokens == 12
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"temperature": 1, "seed": 5},
        {"temperature": 1, "seed": 6, "n": 3, "top_p": 0.9, "max_tokens": 40},
        {"seed": 7, "temperature": 1, "stop": ["e", "\n"], "max_tokens": 200},
        {"seed": 8, "temperature": 1, "echo": True, "logprobs": 2},
        {"seed": 9, "temperature": 1, "prompt": ["one", "two"], "n": 2, "echo": True},
        {"max_tokens": 0, "echo": True, "logprobs": 1},
    ],
    ids=str,
)
def test_streamed_equals_unstreamed(client: OpenAI, changes: dict[str, Any]) -> None:
    """Texts, log probabilities, reasons and counts, put together from the chunks."""
    asked = {"prompt": "Grüße, 你好", "stream_options": None, **changes}
    whole = complete(client, **{**asked, "stream_options": None})
    options = {"include_usage": True}
    chunks = list(complete(client, **{**asked, "stream": True, "stream_options": options}))
    for index, choice in enumerate(whole.choices):
        parts = [each for chunk in chunks for each in chunk.choices if each.index == index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [
            choice.finish_reason
        ]
        if choice.logprobs is not None:
            for name in ("tokens", "token_logprobs", "text_offset"):
                joined = [each for part in parts for each in getattr(part.logprobs, name)]
                assert joined == getattr(choice.logprobs, name)
    assert chunks[-1].choices == []
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_seeds(client: OpenAI) -> None:
    """One seed, one text, alone or among others; answers to one prompt differ."""
    one = complete(client, temperature=1, seed=3, n=4)
    again = complete(client, ["Once upon", "other"], temperature=1, seed=3, n=4)
    assert [each.text for each in one.choices] == [each.text for each in again.choices[:4]]
    assert len({each.text for each in one.choices}) == 4
    drawn = {complete(client, temperature=1).choices[0].text for _ in range(3)}
    assert len(drawn) == 3


def test_stop_strings(client: OpenAI) -> None:
    """The text ends before the first of them, and says so."""
    text = complete(client, max_tokens=60, temperature=1, seed=1).choices[0].text
    stop = text[20:22]
    choice = complete(client, max_tokens=60, temperature=1, seed=1, stop=stop).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


@torch.no_grad()
def test_logprobs(client: OpenAI, model: RetNet) -> None:
    """Of prompt and answer, as the harness of lm-eval asks for them."""
    ids = [TOKENIZER.bos_id, *TOKENIZER.encode("Hello")]
    asked = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    logprobs = complete(client, ids, **asked).choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None
    expected = model(torch.tensor([ids]))[0][0].log_softmax(dim=-1)
    for place, (_, token) in enumerate(pairwise(ids)):
        assert logprobs.token_logprobs[place + 1] == pytest.approx(
            float(expected[place, token]), abs=1e-4
        )
    assert logprobs.top_logprobs is not None
    best = max(logprobs.top_logprobs[-1].items(), key=lambda each: each[1])
    assert best[1] == pytest.approx(float(expected[-1].max()), abs=1e-4)
    assert logprobs.tokens is not None and best[0] == logprobs.tokens[-1]


def test_biases_and_cuts(client: OpenAI) -> None:
    """vLLM's fields arrive, and OpenAI's."""
    letter = TOKENIZER.encode("x")[0]
    forced = complete(client, logit_bias={str(letter): 100}).choices[0].text
    assert forced == "x" * 12
    body = {"frequency_penalty": 2.0, "logit_bias": {str(letter): 20}, "max_tokens": 40}
    assert 0 < complete(client, **body).choices[0].text.count("x") < 40
    hot = {"temperature": 2, "seed": 1}
    for cut in ({"top_k": 1}, {"min_p": 1.0}):
        cold = complete(client, **hot, extra_body=cut).choices[0].text
        assert cold == complete(client).choices[0].text


def test_the_default_length(client: OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt="a", temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 256


def mixed_bodies() -> list[dict[str, Any]]:
    """64 of them: short and long, greedy and seeded, with what else may be asked."""
    return [
        {
            "prompt": f"{number} " * (1 + number * 7 % 40),
            "max_tokens": 5 + number % 30,
            "temperature": 0 if number % 2 else 1,
            "seed": number,
            **({"logprobs": 2} if number % 3 == 0 else {}),
            **({"presence_penalty": 0.5, "stop": ["a"]} if number % 5 == 0 else {}),
        }
        for number in range(64)
    ]


def test_at_once_equals_one_by_one(server: RunningServer) -> None:
    """64 requests on 8 slots, bit for bit."""
    bodies = mixed_bodies()

    def choice_of(body: dict[str, Any]) -> Any:
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        return response.json()["choices"][0]

    alone = [choice_of(body) for body in bodies]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(choice_of, bodies))
    assert together == alone


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        complete(client, model="gpt-4")
    assert refused.value.code == "model_not_found"
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "retnet"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [[1], [259]]}, None),
        ({"prompt": [-1]}, None),
        ({"prompt": None}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**6}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"300": 1}}, None),
        ({"logit_bias": {"-3": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": "\ud800"}, None),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
    ],
    ids=str,
)
def test_bad_values(server: RunningServer, changes: dict[str, Any], param: str | None) -> None:
    """A typed error that names the field, whether streamed or not."""
    for stream in (False, True):
        body = {"prompt": "a", "max_tokens": 1, "stream": stream, **changes}
        headers = {"content-type": "application/json"}
        content = json.dumps(body)  # in ASCII: half a surrogate pair goes through
        response = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error" and error["message"]
        assert error["param"] == param


def test_the_clients_exception(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="max_tokens"):
        complete(client, max_tokens=-5)
