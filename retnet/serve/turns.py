"""What a conversation holds after a turn: the text that was sent and returned, and no more."""

from collections.abc import Sequence
from contextlib import aclosing

from retnet.checkpoint import Conversation
from retnet.model import RetNetState
from retnet.sampling import SamplingParams
from retnet.serve.request import Finish, Request
from retnet.serve.worker import AsyncEngine
from retnet.serve.writing import Piece, write
from retnet.text import TextStream, Tokenizer


async def conversation_after(
    engine: AsyncEngine, tokenizer: Tokenizer, pieces: Sequence[Piece], deadline_s: float
) -> Conversation:
    """The conversation after all the pieces of a request that asked for its states.

    A stop token has not been read and is not part of it. A stop string has been, and is not part of
    it either: what was returned is read again from the state after the prompt.

    Raises:
        ApiError: where that can't be done, as by `write`.
    """
    first, last = pieces[0], pieces[-1]
    assert first.prompt is not None and first.prompt.state is not None and last.output is not None
    if last.finish_reason == "stop" and last.output.finish != Finish.STOP:
        kept = kept_tokens(
            tokenizer,
            [piece.token for piece in pieces if piece.token is not None],
            "".join(piece.text for piece in pieces),
        )
        return await _read(engine, tokenizer, first.prompt.state, kept, deadline_s)
    if last.token is None or last.output.finish == Finish.STOP:
        return Conversation(last.output.state, ())
    return Conversation(last.output.state, (last.token,))


def kept_tokens(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> list[int]:
    """Tokens that write a text with which what some tokens write begins: theirs as far as they are
    whole within it, and those of the rest."""
    stream = TextStream(tokenizer)
    num_kept = num_characters = 0
    for count, token in enumerate(tokens, start=1):
        stream.push(token)
        if stream.num_characters > len(text):
            break
        # A token may end one character and begin another, which is not part of the text.
        if stream.num_characters > num_characters and stream.is_whole:
            num_kept, num_characters = count, stream.num_characters
    return [*tokens[:num_kept], *tokenizer.encode_within(text[num_characters:])]


async def _read(
    engine: AsyncEngine,
    tokenizer: Tokenizer,
    state: RetNetState,
    tokens: Sequence[int],
    deadline_s: float,
) -> Conversation:
    """A conversation that has gone on by some tokens, the last of them unread."""
    if len(tokens) < 2:
        return Conversation(state, tuple(tokens))
    request = Request(
        prompt=tuple(tokens[:-1]),
        params=SamplingParams(max_tokens=0),
        state=state,
        returns_state=True,
    )
    async with aclosing(write(engine, tokenizer, request, deadline_s)) as pieces:
        piece = await anext(pieces)
    assert piece.output is not None and piece.output.state is not None
    return Conversation(piece.output.state, tuple(tokens[-1:]))
