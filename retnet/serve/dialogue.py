"""One conversation with a model in this process: what is said and answered, where it stands."""

import secrets
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

import torch

from retnet.checkpoint import Conversation
from retnet.data.chat_template import ChatTemplate, Message
from retnet.data.pretrained import PretrainedTokenizer
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNetState
from retnet.sampling import SamplingParams
from retnet.serve.engine import Engine
from retnet.serve.request import Finish, Output, Request
from retnet.serve.turns import kept_tokens
from retnet.text import TextStream, Tokenizer, document_ids


class Manner(Protocol):
    """How what is said becomes tokens, and where answers end."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer."""

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def keeps_stop(self) -> bool:
        """Whether a text that ends an answer is part of it."""

    def ids(self, text: str, before: Conversation) -> list[int]:
        """What the model reads, besides what is unread, when a text is said."""


class AsText:
    """A text that two write by turns: what is said is a line of it.

    What the model writes is followed by a line break where it doesn't end with one, nor as a stop
    string does. An empty text lets the model go on where it stands.
    """

    keeps_stop = True

    def __init__(
        self, tokenizer: ByteTokenizer | PretrainedTokenizer, stop: tuple[str, ...]
    ) -> None:
        self._tokenizer, self.stop = tokenizer, stop
        self.stop_tokens: tuple[int, ...] = () if tokenizer.eos_id is None else (tokenizer.eos_id,)

    def ids(self, text: str, before: Conversation) -> list[int]:
        """The text as a line. An empty one is none, unless there is nothing else to read."""
        if not before.num_tokens:
            return document_ids(self._tokenizer, f"{text}\n" if text else "")
        if not text and before.unread:
            return []
        first = "" if self._is_open(before) or not text else "\n"
        return self._tokenizer.encode_within(f"{first}{text}\n")

    def _is_open(self, before: Conversation) -> bool:
        """Whether what has been written ends so that a new line goes on from there."""
        # By the conversation alone: one that was saved and loaded goes on as it would have.
        end = self._tokenizer.decode_bytes(before.unread).decode(errors="replace")
        return end.endswith(("\n", *(stop[-1] for stop in self.stop)))


class AsMessages:
    """Messages of a user, put as a model's chat template wants them.

    An empty one lets the model go on with its answer.

    system: a message before the first; None for none. ValueError where the template refuses it.
    """

    keeps_stop = False

    def __init__(
        self, template: ChatTemplate, stop: tuple[str, ...], system: str | None = None
    ) -> None:
        self._template = template
        self.stop, self.stop_tokens = (*template.stop, *stop), template.stop_ids
        self._system: list[Message] = []
        if system is not None:
            self._system = [{"role": "system", "content": system}]
            self.ids("a", Conversation())  # refused now, or never

    def ids(self, text: str, before: Conversation) -> list[int]:
        """The message, with all that goes around it; ValueError where there is nothing to read."""
        if not text:
            if before.unread:
                return []
            raise ValueError("there is no unfinished answer to go on with; say something")
        message = {"role": "user", "content": text}
        if before.num_tokens:
            return self._template.next_ids([message])
        return self._template.ids([*self._system, message])


@dataclass(frozen=True)
class Figures:
    """What the last answer took: tokens, and seconds up to the first token and after it."""

    num_read: int
    num_written: int
    read_s: float
    write_s: float

    @property
    def written_per_s(self) -> float | None:
        """Tokens a second after the first one; None where there were no more."""
        return (self.num_written - 1) / self.write_s if self.num_written > 1 else None


class Dialogue:
    """Where a conversation stands, and how it goes on.

    Args:
        engine: used by nobody else.
        params: its stop strings and tokens don't count, those of the manner do.
        seed: answers are drawn from it and from how long the conversation is, so that they are the
            same after a while on disk; None for other ones every time.

    Attributes:
        conversation: may be set between answers.
        num_read, num_written: tokens, of all answers so far.
        figures: those of the last answer; None before the first.
        is_cut: whether the last answer came to params.max_tokens.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        manner: Manner,
        params: SamplingParams,
        seed: int | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._manner, self._seed = engine, tokenizer, manner, seed
        self._params = replace(params, stop=manner.stop, stop_tokens=manner.stop_tokens)
        self.conversation = Conversation()
        self.num_read = self.num_written = 0
        self.figures: Figures | None = None
        self.is_cut = False

    @property
    def device(self) -> torch.device:
        """Where conversations have to be."""
        return self._engine.decoder.device

    def say(self, text: str) -> Generator[str]:
        """The answer, in pieces as they come; empty ones while there is nothing to show.

        When it has ended, or has been closed, the conversation holds the text and what was given
        out of the answer, no more. Closed before the text was read, it is what it was.

        Raises ValueError, before anything is read, for a text that the tokenizer or the template
        refuses.
        """
        before = self.conversation
        ids = self._manner.ids(text, before)
        request = Request(
            prompt=(*before.unread, *ids),
            params=self._params,
            seed=self._next_seed(),
            state=before.state,
            returns_state=True,
        )
        return self._answer(request)

    def _next_seed(self) -> int:
        if self._seed is None:
            return secrets.randbelow(2**63)
        return (self._seed + self.conversation.num_tokens) % 2**63

    def _answer(self, request: Request) -> Generator[str]:
        self.is_cut = False
        answer = _Answer(self._engine, self._tokenizer, request, self._manner.keeps_stop)
        try:
            yield from answer.pieces()
        finally:
            answer.end()
            if answer.prompt_state is not None:
                self.conversation = answer.conversation()
                self.figures = answer.figures()
                self.is_cut = answer.last is not None and answer.last.finish == Finish.LENGTH
                self.num_read += self.figures.num_read
                self.num_written += self.figures.num_written


@dataclass
class _Answer:
    """A request on its way. shown: what was given out of the answer."""

    engine: Engine
    tokenizer: Tokenizer
    request: Request
    keeps_stop: bool
    prompt_state: RetNetState | None = None
    tokens: list[int] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    last: Output | None = None
    began_s: float = field(default_factory=perf_counter)
    first_s: float = 0.0
    ended_s: float = 0.0

    def __post_init__(self) -> None:
        self.id = self.engine.add(self.request)

    def pieces(self) -> Generator[str]:
        """What it brings, as it comes."""
        text = TextStream(self.tokenizer, self.request.params.stop)
        while self.last is None:
            for output in self.engine.step():
                piece = self._take(output, text)
                self.shown.append(piece)
                yield piece
                if text.is_stopped:
                    self.last = None  # What has been written may go beyond.
                    rest = self._stop_string() if self.keeps_stop else ""
                    self.shown.append(rest)
                    yield rest
                    return
            if self.prompt_state is None:
                yield ""

    def _take(self, output: Output, text: TextStream) -> str:
        """The text that is sure since an output came."""
        if output.finish == Finish.FAILED:
            self.prompt_state = None
            raise ValueError("the model gave scores that are not numbers; its weights are broken")
        if output.prompt is not None:
            self.prompt_state, self.first_s = output.prompt.state, perf_counter()
        self.last = None if output.finish is None else output
        if output.token is None or output.finish == Finish.STOP:
            return text.finish()
        self.tokens.append(output.token)
        piece = text.push(output.token)
        return piece if output.finish is None else piece + text.finish()

    def _stop_string(self) -> str:
        """The one that what was written has come to."""
        written = self.tokenizer.decode_bytes(self.tokens).decode(errors="replace")
        rest = written[len("".join(self.shown)) :]
        stops = [stop for stop in self.request.params.stop if rest.startswith(stop)]
        return min(stops, key=len, default="")

    def end(self) -> None:
        """Nothing more is wanted."""
        self.ended_s = perf_counter()
        if self.last is None:
            self.engine.abort(self.id)
            self.engine.step()

    def conversation(self) -> Conversation:
        """Where it stands after the prompt and what was shown."""
        assert self.prompt_state is not None
        if self.last is not None:
            is_stop = self.last.finish == Finish.STOP
            return Conversation(self.last.state, () if is_stop else tuple(self.tokens[-1:]))
        kept = kept_tokens(self.tokenizer, self.tokens, "".join(self.shown))
        return Conversation(self._read(kept[:-1]), tuple(kept[-1:]))

    def _read(self, tokens: Sequence[int]) -> RetNetState:
        """The state after the prompt and some tokens."""
        assert self.prompt_state is not None
        if not tokens:
            return self.prompt_state
        params = SamplingParams(max_tokens=0)
        prompt, state = tuple(tokens), self.prompt_state
        request = Request(prompt=prompt, params=params, state=state, returns_state=True)
        [result] = self.engine.generate([request])
        assert result.state is not None
        return result.state

    def figures(self) -> Figures:
        """What it took."""
        return Figures(
            num_read=len(self.request.prompt),
            num_written=len(self.tokens),
            read_s=self.first_s - self.began_s,
            write_s=self.ended_s - self.first_s,
        )
