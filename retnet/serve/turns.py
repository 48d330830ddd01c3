"""What a conversation holds after a turn: the text that was sent and returned, and no more."""

from collections.abc import Sequence
from contextlib import aclosing

from retnet.checkpoint import Conversation
from retnet.model import RetNetState
from retnet.sampling import SamplingParams
from retnet.serve.request import Finish, Request
from retnet.serve.worker import AsyncEngine
from retnet.serve.writing import Piece, unavailable
from retnet.text import TextStream, Tokenizer


async def conversation_after(
    engine: AsyncEngine, tokenizer: Tokenizer, pieces: Sequence[Piece]
) -> Conversation:
    """The conversation after all the pieces of a request that asked for its states.

    A stop token has not been read and is not part of it. A stop string has been, and is not part of
    it either: what was returned is read again from the state after the prompt.
    """
    first, last = pieces[0], pieces[-1]
    assert first.prompt is not None and first.prompt.state is not None and last.output is not None
    if last.finish_reason == "stop" and last.output.finish != Finish.STOP:
        kept = kept_tokens(
            tokenizer,
            [piece.token for piece in pieces if piece.token is not None],
            "".join(piece.text for piece in pieces),
        )
        return await _read(engine, first.prompt.state, kept)
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
        if stream.num_characters > num_characters:
            num_kept, num_characters = count, stream.num_characters
    return [*tokens[:num_kept], *tokenizer.encode(text[num_characters:])]


async def _read(engine: AsyncEngine, state: RetNetState, tokens: Sequence[int]) -> Conversation:
    """A conversation that has gone on by some tokens, the last of them unread."""
    if len(tokens) > 1:
        request = Request(
            prompt=tuple(tokens[:-1]),
            params=SamplingParams(max_tokens=0),
            state=state,
            returns_state=True,
        )
        async with aclosing(engine.stream(request)) as outputs:
            output = await anext(outputs)
        if output.state is None:
            raise unavailable("the server is stopping")
        state = output.state
    return Conversation(state, tuple(tokens[-1:]))
