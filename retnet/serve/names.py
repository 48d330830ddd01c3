"""How single tokens are shown to clients: a token's bytes need not be characters."""

from retnet.serve.request import TokenLogprob
from retnet.text import Tokenizer


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """A token's text; "bytes:\\xNN" for parts of characters, "token_id:N" for no text."""
    data = tokenizer.decode_bytes([token])
    if not data:
        return f"token_id:{token}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def top_names(tokenizer: Tokenizer, logprob: TokenLogprob) -> dict[str, float]:
    """The token itself and the likeliest in its place, by name; a name that is taken by another
    gives way to the id."""
    named: dict[str, float] = {}
    for token, value in {logprob.token: logprob.logprob, **dict(logprob.top)}.items():
        name = token_name(tokenizer, token)
        named[f"token_id:{token}" if name in named else name] = value
    return named
