"""What fewer bits for weights cost: bits per byte of texts, of one model in several precisions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

import torch

from retnet.checkpoint import load_checkpoint
from retnet.data.pretrained import load_any_tokenizer
from retnet.data.text import Document, num_bytes
from retnet.decoding import Decoder
from retnet.eval.documents import first_id, token_documents, token_unit
from retnet.eval.positions import PositionLoss, PositionMeter
from retnet.score import evaluating, score_tokens, token_costs
from retnet.windows import score_windows, sliding_windows

_LARGEST_EXPONENT = 700  # of a float


@dataclass(frozen=True)
class PrecisionScore:
    """How well texts are told by weights of a kind; the first's is what others differ from.

    Attributes:
        weights: their kind.
        bits_per_byte: bits over all texts by their bytes.
        token_perplexity: e to the nats per token; of bytes, 2 to the bits per byte.
        word_perplexity: e to the nats per word, see `count_words`; None where there are no words,
            and beyond what a float holds.
        num_bytes, num_tokens, num_words: of the texts.
        unit: what a token is, a "byte" or a "token".
        positions: what tokens cost by their position in the document; none in windows.
    """

    weights: str
    bits_per_byte: float
    token_perplexity: float
    word_perplexity: float | None
    num_bytes: int
    num_tokens: int
    num_words: int
    unit: str
    positions: tuple[PositionLoss, ...]


def count_words(texts: Sequence[Document]) -> int:
    """Words between white space, and the ends of lines, each of which counts as one: as word
    perplexities of WikiText count.
    """
    return sum(len(text.data.split()) + text.data.count(b"\n") for text in texts)


def score_precisions(
    directory: Path,
    texts: Sequence[Document],
    *,
    int8: bool,
    device: torch.device,
    window: tuple[int, int] | None = None,
) -> Iterator[PrecisionScore]:
    """Each score as it is known: with weights and activations in fp32, then in bf16, and perhaps
    with the matrices in int8 and all else in bf16, which is how such a model is served.

    window: (window, stride) of `sliding_windows`, in which texts are read; None: each text from its
    beginning to its end with the state carried along.

    Raises:
        ValueError: for a model or a tokenizer that cannot be read.
    """
    num_words = count_words(texts)
    for name in ("fp32", "bf16", *(["int8"] if int8 else [])):
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        model = load_checkpoint(directory, device=device, dtype=dtype).eval()
        if name == "int8":
            model = Decoder(model, kernel="torch", int8=True).model
        tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
        bos_id, meter = first_id(tokenizer), PositionMeter()
        documents, costs = token_documents(tokenizer, texts), token_costs(model)
        with evaluating(model):
            if window is None:
                score = score_tokens(meter.watching(costs), documents, bos_id=bos_id, device=device)
                nats = score.total_nats
            else:
                size, stride = window
                windows = sliding_windows(documents, bos_id=bos_id, window=size, stride=stride)
                nats = score_windows(costs, windows, device=device).total_nats
        num_tokens = sum(len(document.ids) for document in documents)
        yield PrecisionScore(
            weights=name,
            bits_per_byte=nats / log(2) / num_bytes(texts),
            token_perplexity=exp(nats / num_tokens),
            word_perplexity=_perplexity(nats, num_words),
            num_bytes=num_bytes(texts),
            num_tokens=num_tokens,
            num_words=num_words,
            unit=token_unit(tokenizer),
            positions=meter.losses(),
        )


def _perplexity(nats: float, count: int) -> float | None:
    return exp(nats / count) if nats < _LARGEST_EXPONENT * count else None
