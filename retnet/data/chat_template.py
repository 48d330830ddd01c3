"""Messages to tokens: the Jinja template that came with a tokenizer, its text cut into tokens.

What a template writes may name special tokens; what people write in messages is data, always. A
template works on the texts themselves (it trims them, looks for tags), so they stand in what it
renders, with a mark behind every character that could begin the name of a special token. Once the
names that are left, which are the template's, are taken for tokens, the marks are taken out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retnet.data.pretrained import PretrainedTokenizer, tokenizer_settings
from retnet.data.template_sandbox import MOST_CHARACTERS, TemplateText
from retnet.data.tokenizer import ByteTokenizer, SpecialToken

CHAT_TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Message = Mapping[str, str]

_ANSWER, _QUESTION = "chat-template-answer", "chat-template-question"


class ChatTemplate:
    """How a model was taught to see conversations.

    Args:
        source: in Jinja, as Transformers' chat templates are.
        tokenizer: the model's.
        settings: what tokenizer_config.json says: "bos_token" and such go to the template.

    Attributes:
        source: as it was given.
        stop_ids: tokens that end the assistant's turn: eos, and the special token that the template
            closes it with.
        stop: the text that it closes it with, where that is no special token.

    Raises:
        ValueError: for a source that isn't Jinja, or that can't show a question, an answer and a
            question.
    """

    def __init__(
        self,
        source: str,
        tokenizer: ByteTokenizer | PretrainedTokenizer,
        settings: Mapping[str, Any],
    ) -> None:
        self.source = source
        self._template = TemplateText(source)
        self._tokenizer = tokenizer
        self._variables = dict(_token_names(settings))
        # The longest first: one name may begin another.
        self._tokens = sorted(tokenizer.special_tokens, key=lambda token: -len(token.name))
        self._names = _names_pattern(self._tokens)
        self._beginnings = _beginnings_pattern(self._tokens, self._template.constants)
        closing = self._closing()
        eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ends = [closing] if isinstance(closing, int) else []
        self.stop_ids = tuple(dict.fromkeys(eos + ends))
        self.stop = (closing,) if isinstance(closing, str) else ()

    @staticmethod
    def load(
        directory: str | Path, tokenizer: ByteTokenizer | PretrainedTokenizer
    ) -> "ChatTemplate | None":
        """That of a tokenizer's folder; None where it has none.

        It is in chat_template.jinja, or in tokenizer_config.json under "chat_template": a text, or
        a list of named ones, of which "default" counts.
        """
        settings = tokenizer_settings(Path(directory))
        source = _source(Path(directory), settings)
        return None if source is None else ChatTemplate(source, tokenizer, settings)

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation from its beginning, up to where the assistant's answer begins.

        messages: each has a "role", one of ROLES, and a "content"; other texts it may have go to
            the template too.
        Returns ids that begin with bos once, where the tokenizer has one.
        Raises ValueError for messages that are something else, or that the template refuses.
        """
        _check_messages(messages)
        mark = _unused_character(messages)
        rendered = self._render(messages, mark, adds_prompt=True)
        bos_id = self._tokenizer.bos_id
        ids = self._encode(rendered, mark, begins_text=True)
        return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]

    def next_ids(self, messages: Sequence[Message]) -> list[int]:
        """What follows an answer of the assistant: the end of its turn, new messages, the
        beginning of its next answer.

        Raises ValueError as `ids` does, and where the template wants messages in another order.
        """
        _check_messages(messages)
        before = [_message("user", _QUESTION), _message("assistant", _ANSWER)]
        mark = _unused_character(messages)
        rendered = self._render([*before, *messages], mark, adds_prompt=True)
        _, answer, rest = rendered.partition(_ANSWER)
        if not answer:
            raise ValueError("the chat template doesn't show the assistant's answers")
        return self._encode(rest, mark, begins_text=False)

    def _render(self, messages: Sequence[Message], mark: str, *, adds_prompt: bool) -> str:
        """What the template writes, with marks in what came from messages."""
        marked = [
            {
                key: text if key == "role" else self._beginnings.sub(rf"\g<0>{mark}", text)
                for key, text in message.items()
            }
            for message in messages
        ]
        size = sum(len(text) for message in marked for text in message.values())
        variables = {
            **self._variables,
            "messages": marked,
            "add_generation_prompt": adds_prompt,
            "tools": None,
            "documents": None,
        }
        return self._template.render(variables, MOST_CHARACTERS + 4 * size)

    def _encode(self, rendered: str, mark: str, *, begins_text: bool) -> list[int]:
        ids: list[int] = []
        for part in self._parts(rendered):
            if isinstance(part, int):
                ids.append(part)
            elif begins_text and not ids:
                ids += self._tokenizer.encode(part.replace(mark, ""))
            else:
                ids += self._tokenizer.encode_within(part.replace(mark, ""))
        return ids

    def _parts(self, rendered: str) -> Iterator[int | str]:
        """A text cut at the names of special tokens: their ids, and what is between."""
        end = 0
        for match in self._names.finditer(rendered):
            if match.start() > end:
                yield rendered[end : match.start()]
            assert match.lastindex is not None
            yield self._tokens[match.lastindex - 1].id
            end = match.end()
        if end < len(rendered):
            yield rendered[end:]

    def _closing(self) -> int | str | None:
        """What comes after an answer: a special token, or the first line that says something."""
        question, answer = _message("user", _QUESTION), _message("assistant", _ANSWER)
        messages = [question, answer, question]
        rendered = self._render(messages, _unused_character(messages), adds_prompt=False)
        after = rendered.partition(_ANSWER)[2].partition(_QUESTION)[0]
        blank = ""
        for part in self._parts(after):
            if isinstance(part, int):
                return part
            line = re.match(r"\s*\S[^\n]*", part)
            if line:
                return (blank + line[0]).rstrip()
            blank += part
        return blank or None


def _source(directory: Path, settings: Mapping[str, Any]) -> str | None:
    """The template among the files of a tokenizer."""
    path = directory / CHAT_TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{path} can't be read as UTF-8: {error}") from error
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str | None):
        raise ValueError(f"chat_template in {directory} must be a text, got {type(found).__name__}")
    return found


def _token_names(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """ "bos_token" and such, as templates use them."""
    for key, value in settings.items():
        name = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(name, str):
            yield key, name


def _names_pattern(tokens: Sequence[SpecialToken]) -> re.Pattern[str]:
    """The names of tokens, a group each, with the blanks that some take in."""
    blanks = r"\s*"
    names = (
        f"{blanks * each.strips_before}({re.escape(each.name)}){blanks * each.strips_after}"
        for each in tokens
    )
    return re.compile("|".join(names) or r"(?!)")


def _beginnings_pattern(
    tokens: Sequence[SpecialToken], constants: Iterable[str]
) -> re.Pattern[str]:
    """Every character that could begin the name of a token, but for those of a text, such as
    "</think>", that the template may look for and that can't be confused with a name.
    """
    names = [each.name for each in tokens if each.name]
    harmless = [
        re.escape(text)
        for text in constants
        if text and not any(name.startswith(text) or name in text for name in names)
    ]
    beginnings = "".join(re.escape(name[0]) for name in names)
    unless = rf"(?!{'|'.join(harmless)})" if harmless else ""
    return re.compile(rf"{unless}[{beginnings}]" if names else r"(?!)")


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _check_messages(messages: Sequence[Message]) -> None:
    """ValueError for what aren't messages."""
    if not messages:
        raise ValueError("messages must hold at least one message, got none")
    for index, message in enumerate(messages):
        name = f"messages[{index}]"
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f"{name} must have a {key!r}, got {sorted(message)}")
        for key, text in message.items():
            _check_text(f"{name}[{key!r}]", text)
        # Templates build names from roles: "<|" + role + "|>" must not become any token.
        if message["role"] not in ROLES:
            raise ValueError(
                f"{name}['role'] must be one of {', '.join(ROLES)}, got {message['role'][:40]!r}"
            )


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half a surrogate pair at character {error.start}") from error


def _unused_character(messages: Sequence[Message]) -> str:
    """A character of the private planes, which templates have no use for, that no message has."""
    used = set().union(*(text for message in messages for text in message.values()))
    for code in range(0xF0000, 0x10FFFE):
        if chr(code) not in used:
            return chr(code)
    raise ValueError("messages must leave a character of the private planes unused, got all")
