import pytest
import torch

from retnet.data.batches import Batches, token_stream
from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer

DOCUMENTS = [Document(str(size), bytes(range(97, 97 + size))) for size in (5, 1, 20, 9)]


def batches(context: int = 16, batch_size: int = 4, seed: int = 0) -> Batches:
    stream = token_stream(DOCUMENTS)
    return Batches(stream=stream, context=context, batch_size=batch_size, seed=seed)


def test_every_document_begins_with_bos() -> None:
    stream = token_stream(DOCUMENTS)
    pieces = bytes(DOCUMENTS[0].data), bytes(DOCUMENTS[1].data)
    tokenizer = ByteTokenizer()
    assert len(stream) == 5 + 1 + 20 + 9 + 4
    assert stream[:8].tolist() == [1, *tokenizer.encode(pieces[0]), 1, *tokenizer.encode(pieces[1])]


def test_a_step_gives_the_same_batch_whatever_came_before() -> None:
    first, second = batches(), batches()
    for step in (0, 1, 2):
        first.batch(step)
    assert torch.equal(first.batch(3).tokens, second.batch(3).tokens)
    assert torch.equal(first.batch(3).targets, second.batch(3).targets)


def test_steps_and_seeds_differ() -> None:
    draws = {
        tuple(batches(seed=seed).batch(step).tokens.flatten().tolist())
        for seed in (0, 1, 2)
        for step in (0, 1, 2)
    }
    assert len(draws) == 9


def test_targets_follow_tokens() -> None:
    """Each target is the next token; after a document's last byte it is eos, and never bos."""
    batch = batches(context=30).batch(0)
    assert batch.tokens.shape == batch.targets.shape == (4, 30)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    following = batch.tokens[:, 1:]
    is_start = following == ByteTokenizer.bos_id
    assert is_start.any()
    assert torch.equal(batch.targets[:, :-1][~is_start], following[~is_start])
    assert (batch.targets[:, :-1][is_start] == ByteTokenizer.eos_id).all()
    assert not (batch.targets == ByteTokenizer.bos_id).any()


def test_segments_change_exactly_where_documents_begin() -> None:
    batch = batches(context=30).batch(0)
    assert batch.segment_ids is not None
    changes = batch.segment_ids.diff(dim=1)
    assert torch.equal(changes == 1, batch.tokens[:, 1:] == ByteTokenizer.bos_id)
    assert ((changes == 0) | (changes == 1)).all()


def test_no_segments_within_one_document() -> None:
    """A row may begin with bos: all of it is one document."""
    stream = token_stream([Document("a", b"abcdefgh")])
    for step in range(10):
        drawn = Batches(stream=stream, context=4, batch_size=1, seed=0).batch(step)
        assert drawn.segment_ids is None


def test_every_window_can_be_drawn() -> None:
    """Both ends of the stream included: a window needs its targets, and no token more."""
    drawn = batches(context=30)
    ends = set()
    for step in range(100):
        batch = drawn.batch(step)
        ends |= {
            (int(row[0]), int(last))
            for row, last in zip(batch.tokens, batch.targets[:, -1], strict=True)
        }
    assert len(ends) == len(drawn.stream) - 30


def test_a_stream_of_one_window() -> None:
    stream = token_stream([Document("a", b"abcd")])
    batch = Batches(stream=stream, context=4, batch_size=2, seed=0).batch(7)
    assert batch.tokens.tolist() == [[1, 100, 101, 102]] * 2
    assert batch.targets.tolist() == [[100, 101, 102, 103]] * 2


def test_too_little_text_is_refused() -> None:
    stream = token_stream([Document("a", b"abcd")])
    with pytest.raises(ValueError, match="5 tokens, and a window of context 5 needs 6"):
        Batches(stream=stream, context=5, batch_size=1, seed=0)
