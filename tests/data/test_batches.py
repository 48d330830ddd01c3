import pytest
import torch

from retnet.data.batches import Batch, Streams, Windows
from retnet.data.text import Document
from retnet.data.tokenizer import ByteTokenizer
from retnet.data.tokens import TokenArray, token_stream

DOCUMENTS = [Document(str(size), bytes(range(97, 97 + size))) for size in (5, 1, 20, 9)]
STREAM = token_stream(DOCUMENTS)
SPECIAL = dict(bos_id=ByteTokenizer.bos_id, eos_id=ByteTokenizer.eos_id)


def windows(context: int = 8, batch_size: int = 4, seed: int = 0) -> Windows:
    stream = TokenArray(STREAM)
    return Windows(stream=stream, context=context, batch_size=batch_size, seed=seed, **SPECIAL)


def streams(context: int = 8, batch_size: int = 4) -> Streams:
    stream = TokenArray(STREAM)
    return Streams(stream=stream, context=context, batch_size=batch_size, seed=0, **SPECIAL)


def circle(start: int, length: int) -> list[int]:
    return [int(STREAM[place % len(STREAM)]) for place in range(start, start + length)]


def test_a_step_gives_the_same_batch_whatever_came_before() -> None:
    first, second = windows(), windows()
    for step in (0, 1, 2):
        first.batch(step)
    assert torch.equal(first.batch(3).tokens, second.batch(3).tokens)
    assert torch.equal(first.batch(3).targets, second.batch(3).targets)


def test_steps_and_seeds_differ() -> None:
    draws = {
        tuple(windows(seed=seed).batch(step).tokens.flatten().tolist())
        for seed in (0, 1, 2)
        for step in (0, 1, 2)
    }
    assert len(draws) == 9


@pytest.mark.parametrize("batches", [windows(), streams()])
def test_some_rows_are_those_of_all(batches: Windows | Streams) -> None:
    """What a process reads does not depend on how many there are."""
    whole = batches.batch(2)
    for rows in (slice(0, 2), slice(2, 4), slice(3, 4)):
        part = batches.batch(2, rows)
        assert torch.equal(part.tokens, whole.tokens[rows])
        assert torch.equal(part.targets, whole.targets[rows])
        assert torch.equal(part.starts, whole.starts[rows])


@pytest.mark.parametrize("batches", [windows(), streams()])
def test_targets_follow_tokens(batches: Windows | Streams) -> None:
    """Each is the next token of the text as a circle; after a document's last it is eos."""
    for step in range(20):
        batch = batches.batch(step)
        assert batch.tokens.shape == batch.targets.shape == (4, 8)
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        for start, tokens, targets in zip(*rows_of(batch), strict=True):
            expected = circle(start, 9)
            assert tokens == expected[:-1]
            eos = [2 if token == 1 else token for token in expected[1:]]
            assert targets == eos


def rows_of(batch: Batch) -> tuple[list[int], list[list[int]], list[list[int]]]:
    return batch.starts.tolist(), batch.tokens.tolist(), batch.targets.tolist()


def test_an_epoch_reads_everything_once() -> None:
    """39 tokens in 4 windows of 8, which don't overlap; the next epoch is cut elsewhere."""
    batches = windows()
    epochs = [set(), set()]
    for epoch, places in enumerate(epochs):
        for start in batches.batch(epoch).starts.tolist():
            places |= {(start + offset) % len(STREAM) for offset in range(8)}
        assert len(places) == 32
    assert epochs[0] != epochs[1]


def test_every_place_begins_a_window_in_time() -> None:
    batches = windows()
    starts = {start for step in range(300) for start in batches.batch(step).starts.tolist()}
    assert starts == set(range(len(STREAM)))


def test_streams_go_on_where_they_were() -> None:
    batches = streams()
    for step in range(20):
        now, after = batches.batch(step).starts, batches.batch(step + 1).starts
        assert after.tolist() == [(start + 8) % len(STREAM) for start in now.tolist()]
    assert batches.batch(0).starts.tolist() == [0, 9, 19, 29]


def test_segments_change_exactly_where_documents_begin() -> None:
    batch = windows(context=30, batch_size=1).batch(0)
    assert batch.segment_ids is not None
    changes = batch.segment_ids.diff(dim=1)
    assert torch.equal(changes == 1, batch.tokens[:, 1:] == ByteTokenizer.bos_id)
    assert ((changes == 0) | (changes == 1)).all()


def test_no_segments_within_one_document() -> None:
    """A row may begin with bos: all of it is one document."""
    batch = streams(context=5, batch_size=1).batch(0)
    assert batch.tokens[0, 0] == ByteTokenizer.bos_id
    assert batch.segment_ids is None


def test_more_than_there_is_cannot_be_read_at_once() -> None:
    assert len(STREAM) == 39
    windows(context=19, batch_size=2)
    message = "too little text to train on: 39 tokens, and a step reads 3 x 13 and one more"
    with pytest.raises(ValueError, match=message):
        windows(context=13, batch_size=3)
