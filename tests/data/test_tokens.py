from retnet.data.text import Corpus, Document
from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenData, byte_tokens


def tokens_of(*texts: bytes, train: bytes = b"to train on") -> TokenData:
    documents = tuple(Document(str(index), text) for index, text in enumerate(texts))
    return byte_tokens("a name", Corpus(train=(Document("train", train),), validation=documents))


def test_every_document_begins_with_bos() -> None:
    data = tokens_of(b"held out", train=b"abc")
    assert data.train.read(0, 4).tolist() == [1, *ByteTokenizer().encode(b"abc")]
    assert len(data.train) == 4
    assert (data.train_bytes, data.validation_bytes) == (3, 8)
    assert data.validation[0].ids.tolist() == ByteTokenizer().encode(b"held out")


def test_excerpts_are_spread_over_all() -> None:
    sizes = (1, 300, 2, 500, 80)
    texts = [bytes([size % 256]) * 256 * size for size in sizes]
    data = tokens_of(*texts)
    passages = data.excerpt(40_000)
    assert len(passages) == 9
    assert all(passage.num_bytes == 4096 == len(passage.ids) for passage in passages)
    firsts = [int(passage.ids[0]) - 3 for passage in passages]
    assert firsts == [300 % 256] * 3 + [500 % 256] * 5 + [80]


def test_excerpts_of_little_text() -> None:
    data = tokens_of(*[b"x" * 100] * 20)
    assert data.excerpt(2000) is data.validation
    assert sum(passage.num_bytes for passage in data.excerpt(1999)) == 100
    assert sum(passage.num_bytes for passage in data.excerpt(10)) == 10


def test_the_fingerprint_knows_the_text() -> None:
    """Where a text ends counts too, and on which side it is."""
    prints = [
        tokens_of(b"ab", b"c").fingerprint,
        tokens_of(b"a", b"bc").fingerprint,
        tokens_of(b"ab", b"c", train=b"to train o").fingerprint,
    ]
    assert len(set(prints)) == 3
    assert tokens_of(b"ab", b"c").fingerprint == prints[0]
