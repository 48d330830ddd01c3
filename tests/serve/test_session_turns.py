"""Sessions by way of completions and chat: exactly the text that was sent and returned."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import httpx
import pytest
import torch
from openai import OpenAI
from safetensors.torch import load
from torch import Tensor

from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from tests.serve.running import RunningServer
from tests.serve.test_completions import greedy

TOKENIZER = ByteTokenizer()


@pytest.fixture
def name(server: RunningServer) -> str:
    name = uuid4().hex
    assert httpx.post(f"{server.url}/v1/sessions", json={"id": name}).status_code == 201
    return name


def ask(server: RunningServer, path: str = "completions", **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    text: str = choice["text"] if "text" in choice else choice["message"]["content"]
    return text


def num_tokens(server: RunningServer, name: str) -> int:
    number: int = httpx.get(f"{server.url}/v1/sessions/{name}").json()["num_tokens"]
    return number


def state_of(server: RunningServer, name: str) -> dict[str, Tensor]:
    return load(httpx.get(f"{server.url}/v1/sessions/{name}/state").content)


def greedy_after(model: RetNet, ids: Sequence[int], num: int) -> list[int]:
    return greedy(model, list(ids), num)


def test_turns_are_one_text(server: RunningServer, model: RetNet, name: str) -> None:
    """Three turns, the last without a prompt, equal what the model writes after all of it."""
    ids = [TOKENIZER.bos_id]
    for prompt in ("Once upon", " a time,", ""):
        answer = ask(server, prompt=prompt, max_tokens=15, temperature=0, session_id=name)
        ids += TOKENIZER.encode(prompt)
        expected = greedy_after(model, ids, 15)
        assert text_of(answer) == TOKENIZER.decode(expected)
        ids += expected
        assert num_tokens(server, name) == len(ids)
    assert answer.json()["usage"]["prompt_tokens"] == 0


def test_a_stop_string_is_not_kept(server: RunningServer, name: str) -> None:
    """After it the session equals one that was told exactly what was returned."""
    letters = {str(token): 50 for token in TOKENIZER.encode("abcdefgh")}
    first = {"prompt": "Tell me", "max_tokens": 100, "seed": 11, "logit_bias": letters}
    whole = text_of(ask(server, **first))
    stop = whole[30:32]
    kept = text_of(ask(server, **first, stop=[stop], session_id=name))
    assert kept == whole[: whole.index(stop)]
    told = f"{first['prompt']}{kept}"
    assert num_tokens(server, name) == 1 + len(told)
    second = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    after = text_of(ask(server, prompt=" more", session_id=name, **second))
    assert after == text_of(ask(server, prompt=f"{told} more", **second))
    assert num_tokens(server, name) == 1 + len(f"{told} more") + 20


def test_streams_commit_before_they_end(server: RunningServer, client: OpenAI, name: str) -> None:
    stream = client.completions.create(
        model="tiny",
        prompt="abc",
        max_tokens=5,
        stream=True,
        extra_body={"session_id": name, "ignore_eos": True},
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].finish_reason:
            assert num_tokens(server, name) == 4 + 5


def test_chat_goes_on(server: RunningServer, name: str) -> None:
    """New messages alone are sent; the answer is that to the whole conversation."""
    letters = {str(token): 50 for token in TOKENIZER.encode("abcdefgh")}
    asked = {"max_tokens": 12, "temperature": 0, "logit_bias": letters}
    messages = [{"role": "user", "content": "Hello"}]
    first = text_of(ask(server, "chat/completions", messages=messages, session_id=name, **asked))
    new = {"role": "user", "content": "Go on"}
    second = ask(server, "chat/completions", messages=[new], session_id=name, **asked)
    messages += [{"role": "assistant", "content": first}, new]
    whole = ask(server, "chat/completions", messages=messages, **asked)
    assert len(first) == 12 and text_of(second) == text_of(whole)
    assert second.json()["usage"]["prompt_tokens"] < whole.json()["usage"]["prompt_tokens"]


def test_fork_save_and_restore(server: RunningServer, name: str) -> None:
    """Copies go on alike, by name and by way of a file."""
    ask(server, prompt="In the beginning", max_tokens=9, session_id=name)
    sessions = f"{server.url}/v1/sessions"
    fork = httpx.post(f"{sessions}/{name}/fork").json()["id"]
    data = httpx.get(f"{sessions}/{name}/state").content
    other = uuid4().hex
    assert httpx.put(f"{sessions}/{other}/state", content=data).status_code == 200
    body = {"prompt": " was", "max_tokens": 20, "temperature": 1, "seed": 2, "logprobs": 1}
    told = [ask(server, **body, session_id=each).json() for each in (name, fork, other)]
    assert told[0]["choices"] == told[1]["choices"] == told[2]["choices"]


def test_a_turn_that_breaks_changes_nothing(server: RunningServer, name: str) -> None:
    """A client that leaves; meanwhile the session is busy, afterwards it stands where it stood."""
    ask(server, prompt="abc", max_tokens=3, session_id=name, ignore_eos=True)
    before = state_of(server, name)
    body = {"prompt": "d", "max_tokens": 60_000, "session_id": name, "ignore_eos": True}
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        refused = ask(server, prompt="e", session_id=name)
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "session_busy"
        assert httpx.get(f"{server.url}/v1/sessions/{name}").json()["busy"] is True
    server.until("retnet_slots_used", 0.0)
    after = state_of(server, name)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert ask(server, prompt="e", max_tokens=1, session_id=name).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"session_id": "nobody"}, 404),
        ({"session_id": "../../etc/passwd"}, 400),
        ({"session_id": ""}, 400),
        ({"n": 2}, 400),
        ({"prompt": ["a", "b"]}, 400),
        ({"echo": True, "logprobs": 1}, 400),
        ({"prompt": [999]}, 400),
        ({"prompt": []}, 400),
    ],
    ids=str,
)
def test_what_is_refused(
    server: RunningServer, name: str, body: dict[str, Any], status: int
) -> None:
    """And the session is free and unchanged afterwards."""
    response = ask(server, **{"prompt": "a", "max_tokens": 1, "session_id": name, **body})
    assert response.status_code == status, response.text
    session = httpx.get(f"{server.url}/v1/sessions/{name}").json()
    assert (session["busy"], session["num_tokens"]) == (False, 0)
