"""A conversation in one process: what it holds is what was said and shown, to the token."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.checkpoint import Conversation, StateFormat
from retnet.data.chat_template import ChatTemplate
from retnet.data.tokenizer import ByteTokenizer
from retnet.decoding import Decoder
from retnet.generation import prefill
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.serve.dialogue import AsMessages, AsText, Dialogue, Manner
from retnet.serve.engine import Engine
from tests.learnt import learnt_model

TOKENIZER = ByteTokenizer()
BLANK_LINE = ("\n\n",)
GREEDY = SamplingParams(temperature=0, max_tokens=120)
LINES = """\
{% for each in messages %}{{ each.role }}:{{ each.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
ENDS = """\
{% for each in messages %}{{ each.content }}<eos>{% endfor %}"""


@pytest.fixture(scope="module")
def model() -> RetNet:
    return learnt_model()


def dialogue(
    model: RetNet,
    manner: Manner | None = None,
    params: SamplingParams = GREEDY,
    seed: int | None = None,
) -> Dialogue:
    engine = Engine(Decoder(model), num_slots=1, prefix_cache_bytes=0, prefill_chunk=16)
    return Dialogue(engine, TOKENIZER, manner or AsText(TOKENIZER, BLANK_LINE), params, seed)


def said(dialogue: Dialogue, text: str) -> str:
    return "".join(dialogue.say(text))


def assert_holds(model: RetNet, conversation: Conversation, ids: list[int]) -> None:
    """A conversation is that of these tokens and no others."""
    assert conversation.num_tokens == len(ids)
    unread = conversation.unread
    assert tuple(ids[len(ids) - len(unread) :]) == unread
    _, state = prefill(model, torch.tensor([ids[: len(ids) - len(unread)]]))
    assert conversation.state is not None
    for found, expected in zip(conversation.state.layers, state.layers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_text_written_by_turns(model: RetNet) -> None:
    """The screen is the text, with the blank lines that end answers."""
    talk = dialogue(model)
    screen = "Question 1?\n"
    screen += said(talk, "Question 1?")
    assert screen.count("\n\n") == 1
    assert screen.endswith("the end.\n\n")
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(screen)])
    screen += "Question 2?\n" + said(talk, "Question 2?")
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(screen)])


def test_an_empty_text_goes_on(model: RetNet) -> None:
    """Where it stands, as if it had not stopped; a text begins a line."""
    whole = said(dialogue(model, params=replace(GREEDY, max_tokens=30)), "Question 1?")
    talk = dialogue(model, params=replace(GREEDY, max_tokens=10))
    parts = [said(talk, text) for text in ("Question 1?", "", "")]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert "".join(parts) == whole
    assert talk.is_cut
    more = said(talk, "Question")
    expected = f"Question 1?\n{whole}\nQuestion\n{more}"
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(expected)])


def test_an_empty_text_begins_a_document(model: RetNet) -> None:
    talk = dialogue(model)
    answer = said(talk, "")
    assert answer
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(answer)])


@pytest.mark.parametrize(
    ("stop", "end"), [(("number",), "is number"), (("to", "answer"), "An answer"), ((), None)]
)
def test_stops_are_part_of_such_a_text(
    model: RetNet, stop: tuple[str, ...], end: str | None
) -> None:
    """The first that is complete; a text said behind one goes on in its line."""
    talk = dialogue(model, AsText(TOKENIZER, stop))
    answer = said(talk, "Question 1?")
    assert answer.endswith(end) if end else len(answer) == 120
    assert talk.is_cut == (end is None)
    more = said(talk, "5")
    line = "" if end else "\n"
    expected = f"Question 1?\n{answer}{line}5\n{more}"
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(expected)])


@pytest.mark.parametrize("num_pieces", [0, 1, 2, 5, 20, 30])
def test_closed_early(model: RetNet, num_pieces: int) -> None:
    """What was given out stays, no more; where not all was read, nothing has changed."""
    talk = dialogue(model)
    first = said(talk, "Question 1?")
    before = talk.conversation
    answer = talk.say("Question 4? " * 3)  # 36 bytes are read in three pieces
    shown = "".join(islice(answer, num_pieces))
    answer.close()
    if num_pieces < 3:
        assert not shown
        assert talk.conversation is before
        return
    expected = f"Question 1?\n{first}{'Question 4? ' * 3}\n{shown}"
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(expected)])
    more = said(talk, "")
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode(expected + more)])


def test_half_a_character_is_not_kept(model: RetNet) -> None:
    """Closed between the two bytes of an é."""
    first, _ = TOKENIZER.encode("é")
    bias = {first: 1e4}
    talk = dialogue(model, params=replace(GREEDY, logit_bias=bias, max_tokens=1))
    assert said(talk, "a") == "\ufffd"
    talk = dialogue(model, params=replace(GREEDY, logit_bias=bias, max_tokens=9))
    answer = talk.say("a")
    assert next(answer) == ""
    answer.close()
    assert_holds(model, talk.conversation, [1, *TOKENIZER.encode("a\n")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_after_a_while_on_disk(temperature: float, dtype: torch.dtype, tmp_path: Path) -> None:
    """Bit for bit as without: answers, states; whatever ended the answer before."""
    model = learnt_model().to(dtype)
    params = replace(GREEDY, temperature=temperature, max_tokens=50)
    unbroken = dialogue(model, params=params, seed=5)
    broken = dialogue(model, params=params, seed=5)
    files = StateFormat(model)
    for text in ("Question 1?", "", "Question 3?", "no question", ""):
        assert said(broken, text) == said(unbroken, text)
        files.save(tmp_path / "talk", broken.conversation)
        broken = dialogue(model, params=params, seed=5)
        broken.conversation = files.load(tmp_path / "talk")
        assert_same(broken.conversation, unbroken.conversation)


def assert_same(one: Conversation, other: Conversation) -> None:
    assert one.unread == other.unread
    assert one.state is not None
    assert other.state is not None
    assert torch.equal(one.state.position, other.state.position)
    assert all(map(torch.equal, one.state.layers, other.state.layers))


def test_seeds(model: RetNet) -> None:
    """A seed gives the same answers, but not the same draws in every answer; none, others."""
    params = SamplingParams(max_tokens=40, temperature=3)

    def answers(seed: int | None) -> list[str]:
        talk = dialogue(model, AsText(TOKENIZER, ()), params, seed)
        return [said(talk, "Question 1?"), said(talk, "Question 1?")]

    assert answers(1) == answers(1) != answers(2)
    assert len(set(answers(None) + answers(None))) == 4
    # So hot that the draws alone decide.
    talk = dialogue(model, AsText(TOKENIZER, ()), replace(params, temperature=1e6), 1)
    assert said(talk, "a") != said(talk, "a")


# --- messages


def test_messages(model: RetNet) -> None:
    """Tokens are those of the whole talk at once; what closes an answer comes with the next."""
    template = ChatTemplate(LINES, TOKENIZER, {})
    assert template.stop == ("\nuser:",)
    talk = dialogue(model, AsMessages(template, ("number",), "Be brief."))
    messages = [{"role": "system", "content": "Be brief."}]
    for text in ("Question 1?", "Question 2?"):
        messages.append({"role": "user", "content": text})
        asked = template.ids(messages)
        answer = said(talk, text)
        assert "number" not in answer
        assert_holds(model, talk.conversation, asked + TOKENIZER.encode(answer))
        messages.append({"role": "assistant", "content": answer})


def test_a_stop_with_the_last_token_that_may_come(model: RetNet) -> None:
    """It is no part of the answer then either."""
    template = ChatTemplate(LINES, TOKENIZER, {})
    whole = said(dialogue(model, AsMessages(template, ())), "Question 1?")
    length = whole.index("number") + len("number")
    talk = dialogue(model, AsMessages(template, ("number",)), replace(GREEDY, max_tokens=length))
    answer = said(talk, "Question 1?")
    assert answer == whole[: whole.index("number")]
    asked = template.ids([{"role": "user", "content": "Question 1?"}])
    assert_holds(model, talk.conversation, asked + TOKENIZER.encode(answer))


def test_a_stop_token_is_no_part_of_an_answer(model: RetNet) -> None:
    """The end token that the model wrote is read with the next message, once."""
    template = ChatTemplate(ENDS, TOKENIZER, {})
    talk = dialogue(
        model, AsMessages(template, ()), replace(GREEDY, logit_bias={TOKENIZER.eos_id: 1e4})
    )
    assert said(talk, "a") == ""
    asked = template.ids([{"role": "user", "content": "a"}])
    assert_holds(model, talk.conversation, asked)
    assert said(talk, "b") == ""
    assert_holds(model, talk.conversation, [*asked, 2, *TOKENIZER.encode("b"), 2])
    with pytest.raises(ValueError, match="no unfinished answer to go on with; say something"):
        talk.say("")


def test_an_unfinished_message_goes_on(model: RetNet) -> None:
    template = ChatTemplate(LINES, TOKENIZER, {})
    whole = said(dialogue(model, AsMessages(template, ())), "Question 1?")
    talk = dialogue(model, AsMessages(template, ()), replace(GREEDY, max_tokens=20))
    assert said(talk, "Question 1?") + said(talk, "") == whole[:40]


# --- what goes wrong


def test_refused_texts_change_nothing(model: RetNet) -> None:
    talk = dialogue(model)
    said(talk, "Question 1?")
    before = talk.conversation
    with pytest.raises(ValueError, match="lone surrogate"):
        talk.say("\ud800")
    assert talk.conversation is before
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no systems') }}{% endif %}"
    source = refusing + "{% for each in messages %}{{ each.content }}\n{% endfor %}"
    template = ChatTemplate(source, TOKENIZER, {})
    with pytest.raises(ValueError, match="no systems"):
        AsMessages(template, (), "Be brief.")


def test_broken_weights() -> None:
    """Scores that are no numbers: an error, and the conversation is what it was."""
    model = learnt_model(steps=1)
    with torch.no_grad():
        model.backbone.norm.weight.fill_(float("nan"))
    talk = dialogue(model)
    with pytest.raises(ValueError, match="not numbers"):
        said(talk, "a")
    assert talk.conversation == Conversation()


def test_figures(model: RetNet) -> None:
    talk: Any = dialogue(model, params=replace(GREEDY, max_tokens=7))
    assert talk.figures is None
    said(talk, "abc")
    said(talk, "")
    assert (talk.num_read, talk.num_written) == (1 + 4 + 1, 14)
    assert (talk.figures.num_read, talk.figures.num_written) == (1, 7)
    assert 0 < talk.figures.written_per_s < 1e6
