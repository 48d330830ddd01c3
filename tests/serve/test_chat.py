"""/v1/chat/completions, asked by the official client."""

from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion

from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from tests.serve.running import save_model, started
from tests.serve.test_completions import greedy

TOKENIZER = ByteTokenizer()
QUESTION = {"role": "user", "content": "How are you?"}


def ask(client: OpenAI, *messages: Any, **changes: Any) -> ChatCompletion:
    asked = {"model": "tiny", "max_tokens": 12, "temperature": 0, **changes}
    return client.chat.completions.create(messages=list(messages or [QUESTION]), **asked)


def text_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content is not None
    return content


def rendered(*messages: tuple[str, str]) -> list[int]:
    """What the template of the tests makes of messages, by hand: eos is a token in it."""
    ids = [TOKENIZER.bos_id]
    for role, content in messages:
        ids += [*TOKENIZER.encode(f"[{role}] {content}"), TOKENIZER.eos_id]
    return [*ids, *TOKENIZER.encode("[assistant] ")]


def test_the_template_is_used(client: OpenAI, model: RetNet) -> None:
    """Special tokens of the template are tokens; the same name in a message is text."""
    for content in ("How are you?", "an <eos> in a text"):
        ids = rendered(("system", "Be kind"), ("user", content))
        answer = ask(
            client,
            {"role": "system", "content": "Be kind"},
            {"role": "user", "content": [{"type": "text", "text": content}]},
        )
        assert text_of(answer) == TOKENIZER.decode(greedy(model, ids, 12))
        assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
        assert answer.choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 30},
        {"n": 2, "seed": 1, "temperature": 1.0},
        {"logprobs": True, "top_logprobs": 3, "max_completion_tokens": 5},
    ],
    ids=str,
)
def test_streamed_equals_unstreamed(client: OpenAI, changes: dict[str, Any]) -> None:
    whole = ask(client, **changes)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, **changes))
    for index, choice in enumerate(whole.choices):
        parts = [each for chunk in chunks for each in chunk.choices if each.index == index]
        assert "".join(part.delta.content or "" for part in parts) == choice.message.content
        assert parts[0].delta.role == "assistant"
        assert parts[-1].finish_reason == choice.finish_reason
        if choice.logprobs is not None:
            joined = [each for part in parts for each in part.logprobs.content]
            assert joined == choice.logprobs.content
            assert all(len(each.top_logprobs) == 3 for each in joined)
    assert chunks[-1].usage is not None and chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


def test_completion_tokens_limit(client: OpenAI) -> None:
    """OpenAI's newer name of max_tokens counts where both are there."""
    answer = ask(client, max_tokens=9, max_completion_tokens=3)
    assert answer.usage is not None and answer.usage.completion_tokens == 3


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}, {"content": "a"}],
        [{"role": "wizard", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": 5}],
        "hello",
    ],
    ids=str,
)
def test_bad_messages(client: OpenAI, messages: Any) -> None:
    with pytest.raises(BadRequestError):
        client.chat.completions.create(model="tiny", messages=messages)


def test_without_a_template(tmp_path: Path) -> None:
    """Told, and told what to do instead."""
    save_model(tmp_path / "plain")
    with started(tmp_path / "plain") as server:
        url = f"{server.url}/v1"
        with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with pytest.raises(BadRequestError, match="/v1/completions") as refused:
                ask(client, model="plain")
            assert refused.value.code == "no_chat_template"
