"""What fewer bits for weights cost: bits per byte of texts, of one model in several precisions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from retnet.checkpoint import load_checkpoint
from retnet.data.pretrained import load_any_tokenizer
from retnet.data.text import Document
from retnet.decoding import Decoder
from retnet.eval.documents import first_id, token_documents, token_unit
from retnet.eval.positions import PositionLoss, PositionMeter
from retnet.score import evaluating, score_tokens, token_costs


@dataclass(frozen=True)
class PrecisionScore:
    """How well texts are told by weights of a kind; the first's is what others differ from.

    positions: what tokens cost by their position; unit: what a token is, a "byte" or a "token".
    """

    weights: str
    bits_per_byte: float
    num_bytes: int
    unit: str
    positions: tuple[PositionLoss, ...]


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
        bos_id, meter = first_id(tokenizer), PositionMeter()
        documents, costs = token_documents(tokenizer, texts), meter.watching(token_costs(model))
        with evaluating(model):
            score = score_tokens(costs, documents, bos_id=bos_id, device=device)
        yield PrecisionScore(
            name, score.bits_per_byte, score.total_bytes, token_unit(tokenizer), meter.losses()
        )
