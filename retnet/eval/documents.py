"""Texts as the tokens that a model reads."""

from collections.abc import Sequence

import numpy as np

from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenDocument, Tokenizer


def token_documents(tokenizer: Tokenizer, texts: Sequence[Document]) -> list[TokenDocument]:
    """Each text's ids and bytes."""
    return [
        TokenDocument(np.array(tokenizer.encode(text.data.decode()), np.int64), len(text.data))
        for text in texts
    ]


def first_id(tokenizer: Tokenizer) -> int:
    """The token that stands before a text; ValueError where the tokenizer has none."""
    # What ends one document begins the next where nothing else does.
    bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if bos_id is None:
        raise ValueError("the tokenizer has no token to begin a text with")
    return bos_id


def token_unit(tokenizer: Tokenizer) -> str:
    """What a token is: a "byte" or a "token"."""
    return "byte" if isinstance(tokenizer, ByteTokenizer) else "token"
