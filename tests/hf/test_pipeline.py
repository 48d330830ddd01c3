"""`transformers.pipeline` on a saved folder writes what this project does without Transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Pipeline, TextIteratorStreamer, pipeline

import retnet
from retnet.data.tokenizer import ByteTokenizer
from retnet.generation import generate
from retnet.hf import RetNetConfig, RetNetForCausalLM, RetNetForSequenceClassification
from retnet.sampling import SamplingParams
from retnet.text import complete

PROMPTS = ["Hello", "a longer text, with ünïcödé", "x"]
GREEDY: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture(scope="module")
def folder(
    make_model: Callable[..., RetNetForCausalLM], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    ByteTokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def write(folder: Path) -> Pipeline:
    return pipeline("text-generation", model=str(folder), device="cpu")


def written(folder: Path, prompt: str, *, begins: bool = True) -> str:
    """What this project writes after a prompt, which it begins with <bos>, or after its bytes."""
    tokenizer, model = ByteTokenizer(), retnet.load_checkpoint(folder)
    greedy = SamplingParams(max_tokens=20, temperature=0, stop_tokens=(tokenizer.eos_id,))
    if begins:
        return "".join(complete(model, tokenizer, prompt, greedy))
    tokens = generate(model, torch.tensor([tokenizer.encode(prompt)]), greedy)
    return tokenizer.decode(int(token) for token in tokens)


def test_text_generation(write: Pipeline, folder: Path) -> None:
    [found] = write(PROMPTS[0], **GREEDY)
    assert found["generated_text"] == PROMPTS[0] + written(folder, PROMPTS[0])
    [found] = write(PROMPTS[1], return_full_text=False, **GREEDY)
    assert found["generated_text"] == written(folder, PROMPTS[1])


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3])
def test_text_generation_in_batches(write: Pipeline, folder: Path, batch_size: int | None) -> None:
    """Prompts of several lengths are padded on the left, which changes nothing."""
    found = write(PROMPTS, batch_size=batch_size, **GREEDY)
    texts = [each["generated_text"] for [each] in found]
    assert texts == [prompt + written(folder, prompt) for prompt in PROMPTS]
    assert len(set(texts)) == 3


def test_streamer(write: Pipeline, folder: Path) -> None:
    """Pieces of text as they are written."""
    streamer = TextIteratorStreamer(write.tokenizer, skip_prompt=True, skip_special_tokens=True)
    write(PROMPTS[0], streamer=streamer, **GREEDY)
    assert "".join(streamer) == written(folder, PROMPTS[0])


def test_chat(folder: Path, tmp_path: Path) -> None:
    """A chat template beside the tokenizer turns messages into the prompt; text stays text.

    Transformers leaves <bos> to templates, where it is text too, so that it is left out.
    """
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    RetNetForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi, <eos>!"}]
    prompt = "system: Be brief.\nuser: Hi, <eos>!\nassistant:"
    answer = {"role": "assistant", "content": written(tmp_path, prompt, begins=False)}
    [found] = pipeline("text-generation", model=str(tmp_path), device="cpu")(chat, **GREEDY)
    assert found["generated_text"] == [*chat, answer]


def test_text_classification(make_config: Callable[..., RetNetConfig], tmp_path: Path) -> None:
    """Names of labels from the configuration; batches padded on the left as alone."""
    torch.manual_seed(0)
    names = ["bad", "so so", "good"]
    config = make_config(
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}
    )
    model = RetNetForSequenceClassification(config).eval()
    with torch.no_grad():
        model.score.weight.mul_(10)
        rows = [torch.tensor([[1, *ByteTokenizer().encode(text)]]) for text in PROMPTS]
        logits = [model(row).logits[0] for row in rows]
    model.save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu")
    for batch_size in (None, 3):
        found = classify(PROMPTS, batch_size=batch_size)
        assert [each["label"] for each in found] == [names[row.argmax()] for row in logits]
        scores = [float(row.softmax(-1).max()) for row in logits]
        assert [each["score"] for each in found] == pytest.approx(scores, rel=1e-5)
