"""What fewer bits for weights cost: bits per byte of texts, of one model in several precisions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from retnet.checkpoint import load_checkpoint
from retnet.data.pretrained import load_any_tokenizer
from retnet.data.text import Document
from retnet.data.tokens import TokenDocument, Tokenizer
from retnet.decoding import Decoder
from retnet.model import RetNet
from retnet.score import evaluating, score_tokens, token_costs


@dataclass(frozen=True)
class PrecisionScore:
    """How well texts are told by weights of a kind; the first's is what others differ from."""

    weights: str
    bits_per_byte: float
    num_bytes: int


def score_precisions(
    directory: Path, texts: Sequence[Document], *, int8: bool, device: torch.device
) -> Iterator[PrecisionScore]:
    """Each score as it is known: with weights and activations in fp32, then in bf16, and perhaps
    with the matrices in int8 and all else in bf16, which is how such a model is served.

    Raises:
        ValueError: for a model or a tokenizer that cannot be read.
    """
    for name in ("fp32", "bf16", *(["int8"] if int8 else [])):
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        model = load_checkpoint(directory, device=device, dtype=dtype).eval()
        if name == "int8":
            model = Decoder(model, kernel="torch", int8=True).model
        tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
        yield PrecisionScore(name, *_score(model, tokenizer, texts, device))


def _score(
    model: RetNet, tokenizer: Tokenizer, texts: Sequence[Document], device: torch.device
) -> tuple[float, int]:
    """Bits per byte, and how many bytes."""
    # What ends one document begins the next where nothing else does.
    bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    if bos_id is None:
        raise ValueError("the tokenizer has no token to begin a text with")
    documents = [
        TokenDocument(np.array(tokenizer.encode(text.data.decode()), np.int64), len(text.data))
        for text in texts
    ]
    with evaluating(model):
        score = score_tokens(token_costs(model), documents, bos_id=bos_id, device=device)
    return score.bits_per_byte, score.total_bytes
