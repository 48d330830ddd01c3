"""Text compressed with a model, and read again."""

from copy import deepcopy
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.config import preset
from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenDocument
from retnet.decoding import Decoder, KernelName
from retnet.eval.compression import compress, decompress, header_bytes
from retnet.eval.round_trip import beginning, round_trip
from retnet.model import RetNet
from retnet.score import score_tokens, token_costs
from tests.learnt import TEXT, learnt_model, save_learnt_model

BOS = ByteTokenizer.bos_id
# Lengths in no order, some of them equal, more than are read side by side, and nothing at all.
LENGTHS = (40, 0, 1, 16, 17, 15, 33, 2, 16, 0, 90, *range(3, 15))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(learnt_model(), kernel="torch")


def random_documents(lengths: tuple[int, ...], vocab_size: int = 259) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def stated_bits(model: RetNet, documents: list[list[int]]) -> float:
    texts = [TokenDocument(np.array(ids), len(ids)) for ids in documents]
    score = score_tokens(token_costs(model), texts, bos_id=BOS, device=torch.device("cpu"))
    return sum(score.document_bits)


@pytest.mark.parametrize("kernel", ["native", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_code_is_read_back(core: RetNet, kernel: KernelName, dtype: torch.dtype) -> None:
    """Documents of all lengths and ids, by another decoder than the one that wrote the code."""
    documents = random_documents(LENGTHS)
    writer, reader = (Decoder(deepcopy(core).to(dtype), kernel=kernel) for _ in range(2))
    code = compress(writer, documents, bos_id=BOS)
    assert decompress(reader, code, bos_id=BOS) == documents


@pytest.mark.parametrize("settings", [{"tie_embeddings": True}, {"score_norm": "paper"}])
def test_other_models(settings: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(0)
    config = preset("tiny", d_model=32, num_layers=2, vocab_size=40, **settings)
    decoder = Decoder(RetNet(config, generator=generator).eval())
    documents = random_documents((50, 3), vocab_size=40)
    code = compress(decoder, documents, bos_id=0)
    assert decompress(decoder, code, bos_id=0) == documents


def test_its_size_is_what_the_evaluator_states() -> None:
    """For text that the model has learnt, and for text that it is sure to be wrong about.

    The evaluator reads many tokens at once, in chunks, and could look ahead; the decoder can't.
    """
    model = learnt_model()
    decoder = Decoder(model)
    for text in (TEXT, " ".join(f"{number}. No such text!" for number in range(250))):
        documents = [ByteTokenizer().encode(text[:4000]), ByteTokenizer().encode(text[4000:])]
        code = compress(decoder, documents, bos_id=BOS)
        assert decompress(decoder, code, bos_id=BOS) == documents
        bits = 8 * (len(code) - header_bytes(list(map(len, documents))))
        stated = stated_bits(model, documents)
        # fp32 rounds otherwise in chunks; the code ends with two bits, and up to seven of a byte.
        assert stated * (1 - 1e-4) <= bits <= stated * (1 + 1e-4) + 9


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(0, 258), max_size=12), max_size=20))
def test_any_ids(decoder: Decoder, documents: list[list[int]]) -> None:
    code = compress(decoder, documents, bos_id=BOS)
    assert decompress(decoder, code, bos_id=BOS) == documents


@pytest.fixture(scope="module")
def code(decoder: Decoder) -> bytes:
    return compress(decoder, random_documents((20, 5)), bos_id=BOS)


@given(st.data())
def test_damage_is_refused(decoder: Decoder, code: bytes, data: st.DataObject) -> None:
    """Cut short, lengthened, or with a byte changed."""
    place = data.draw(st.integers(0, len(code) - 1))
    changed = bytes([code[place] ^ data.draw(st.integers(1, 255))])
    for damaged in (code[:place], code + changed, code[:place] + changed + code[place + 1 :]):
        with pytest.raises(ValueError, match="the code is damaged"):
            decompress(decoder, damaged, bos_id=BOS)


@settings(max_examples=30)
@given(st.binary(max_size=40))
def test_what_has_the_right_checksum_ends_too(decoder: Decoder, body: bytes) -> None:
    """Any bytes are refused or are some ids, whatever they say of how many there are."""
    code = crc32(body).to_bytes(4, "little") + body
    try:
        found = decompress(decoder, code, bos_id=BOS)
    except ValueError as error:
        assert "the code ends before its text does" in str(error)
    else:
        assert all(0 <= token < 259 for ids in found for token in ids)


def test_another_model_does_not_read_it(decoder: Decoder, core: RetNet) -> None:
    documents = random_documents((30,))
    code = compress(decoder, documents, bos_id=BOS)
    try:
        assert decompress(Decoder(deepcopy(core)), code, bos_id=BOS) != documents
    except ValueError as error:
        assert "the code ends before its text does" in str(error)


def test_ids_that_are_not_there(decoder: Decoder) -> None:
    for documents in ([[3, 259]], [[3], [-1, 5]]):
        with pytest.raises(ValueError, match=r"documents must be of ids in \[0, 259\)"):
            compress(decoder, documents, bos_id=BOS)


def test_progress_counts_every_token(decoder: Decoder) -> None:
    documents, written, read = random_documents(LENGTHS), [], []
    code = compress(decoder, documents, bos_id=BOS, progress=written.append)
    decompress(decoder, code, bos_id=BOS, progress=read.append)
    assert written == read
    assert sum(written) == sum(LENGTHS)


def test_the_round_trip_of_a_checkpoint(tmp_path: Path) -> None:
    folder, seen = save_learnt_model(tmp_path / "model"), []
    texts = [Document("a", TEXT[:600].encode()), Document("b", "Zürich!".encode())]
    done = round_trip(
        folder,
        texts,
        device=torch.device("cpu"),
        progress=lambda count, total: seen.append((count, total)),
    )
    assert done.identical
    assert done.num_bytes == done.num_tokens == 608
    assert done.header_bytes == 4 + 1 + 2 + 1
    bits = 8 * (done.coded_bytes - done.header_bytes)
    assert done.coded_bits_per_byte == pytest.approx(bits / 608)
    assert bits == pytest.approx(done.stated_bits_per_byte * 608, rel=1e-3, abs=9)
    assert seen[-1] == (2 * 608, 2 * 608)
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)


def test_the_beginning_of_texts() -> None:
    """Of whole characters; documents after it are left out."""
    texts = [Document("a", b"abc"), Document("b", "üö".encode()), Document("c", b"d")]
    for num_bytes, expected in (
        (1, [b"a"]),
        (3, [b"abc"]),
        (4, [b"abc"]),
        (5, [b"abc", "ü".encode()]),
        (6, [b"abc", "ü".encode()]),
        (7, [b"abc", "üö".encode()]),
        (100, [b"abc", "üö".encode(), b"d"]),
    ):
        assert [text.data for text in beginning(texts, num_bytes)] == expected
    for num_bytes in (1, 0, -5):
        with pytest.raises(ValueError, match="num_bytes must reach over a character"):
            beginning(texts[1:], num_bytes)
