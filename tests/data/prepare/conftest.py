"""Folders of prepared tokens, made and read back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.run import Prepared, prepare
from retnet.data.shards import Shard, TokenShards, read_header, verify
from retnet.data.tokens import load_tokens

Prepare = Callable[..., Prepared]


@pytest.fixture
def prepare_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares sources in an empty folder, into "out", in this process."""
    monkeypatch.chdir(tmp_path)

    def run(*sources: str, **settings: Any) -> Prepared:
        values = {"out": "out", "workers": 1, **settings}
        done = prepare(PrepareConfig(sources=sources, **values))
        verify(done.out)
        return done

    return run


def documents_of(directory: str | Path, shards: Sequence[Shard]) -> list[bytes]:
    """The texts of all documents in some shards."""
    header = read_header(directory)
    tokens = TokenShards(directory, shards, header.dtype)
    tokenizer = load_tokens(str(directory)).tokenizer
    rows = tokens.documents()
    ends = [*(int(start) for start, _ in rows[1:]), len(tokens)]
    texts = []
    for (start, _), stop in zip(rows, ends, strict=True):
        ids = tokens.read(int(start), stop).tolist()
        assert ids[0] == header.bos_id
        assert header.bos_id not in ids[1:]
        texts.append(tokenizer.decode_bytes(ids))
    assert sum(map(len, texts)) == sum(shard.num_bytes for shard in shards)
    assert len(texts) == sum(shard.num_documents for shard in shards)
    return texts


def train_of(directory: str | Path = "out") -> list[bytes]:
    """The documents to train on, in their order."""
    return documents_of(directory, read_header(directory).train)


def validation_of(directory: str | Path = "out") -> list[bytes]:
    """The documents held out, in their order."""
    return documents_of(directory, read_header(directory).validation)


def contents(directory: str | Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}
