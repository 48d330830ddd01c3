"""The proof of a score: text is compressed to as many bits as the model states, and read again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from retnet.checkpoint import load_checkpoint
from retnet.data.pretrained import load_any_tokenizer
from retnet.data.text import Document
from retnet.decoding import Decoder, KernelName
from retnet.eval.compression import compress, decompress, header_bytes
from retnet.eval.documents import first_id, token_documents
from retnet.score import score_tokens, token_costs


@dataclass(frozen=True)
class RoundTrip:
    """What came of it.

    Attributes:
        num_bytes, num_tokens: of the text.
        kernel: which of the decoder's coded it.
        coded_bytes: of the code.
        header_bytes: how many of these are a checksum and the documents' lengths.
        coded_bits_per_byte: the code without its header, as bits by bytes of text.
        stated_bits_per_byte: what the evaluator says, which reads many tokens at once.
        difference_percent: how much more the code has, without its header, than was stated.
        identical: whether the code was read back as the ids that were written.
    """

    num_bytes: int
    num_tokens: int
    kernel: str
    coded_bytes: int
    header_bytes: int
    coded_bits_per_byte: float
    stated_bits_per_byte: float
    difference_percent: float
    identical: bool


def round_trip(
    directory: Path,
    texts: Sequence[Document],
    *,
    device: torch.device,
    kernel: KernelName = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> RoundTrip:
    """Compress texts with the model in a folder, in fp32, and decompress them.

    progress: called after each step with the tokens that have been coded or read again, and with
    how many these will be. Raises ValueError for a model that a decoder doesn't take.
    """
    model = load_checkpoint(directory, device=device, dtype=torch.float32).eval()
    tokenizer = load_any_tokenizer(directory, vocab_size=model.config.vocab_size)
    bos_id, documents = first_id(tokenizer), token_documents(tokenizer, texts)
    decoder = Decoder(model, kernel=kernel)
    score = score_tokens(token_costs(model), documents, bos_id=bos_id, device=device)
    ids: list[list[int]] = [document.ids.tolist() for document in documents]
    num_tokens, num_done = sum(map(len, ids)), 0

    def stepped(num_coded: int) -> None:
        nonlocal num_done
        num_done += num_coded
        if progress is not None:
            progress(num_done, 2 * num_tokens)

    code = compress(decoder, ids, bos_id=bos_id, progress=stepped)
    found = decompress(decoder, code, bos_id=bos_id, progress=stepped)
    header = header_bytes([len(document) for document in ids])
    coded, stated = 8 * (len(code) - header) / score.total_bytes, score.bits_per_byte
    return RoundTrip(
        num_bytes=score.total_bytes,
        num_tokens=num_tokens,
        kernel=decoder.kernel_name,
        coded_bytes=len(code),
        header_bytes=header,
        coded_bits_per_byte=coded,
        stated_bits_per_byte=stated,
        difference_percent=100 * (coded / stated - 1),
        identical=found == ids,
    )


def beginning(texts: Sequence[Document], num_bytes: int) -> list[Document]:
    """The first so many bytes of texts, a few less where a character would be cut.

    Raises:
        ValueError: where not one character is that short.
    """
    chosen: list[Document] = []
    left = max(0, num_bytes)
    for text in texts:
        part = text.data[:left].decode(errors="ignore").encode()
        if part:
            chosen.append(Document(text.name, part))
        left -= len(text.data)
        if left <= 0:
            break
    if not chosen:
        raise ValueError(f"num_bytes must reach over a character, got {num_bytes}")
    return chosen
