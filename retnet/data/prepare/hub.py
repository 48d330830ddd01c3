"""Data sets that the package `datasets` reads, from the Hugging Face hub or a folder; streamed."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retnet.data.prepare.passages import Advance, BadTextError, Item, LeftOut, Passage

PREFIX = "hf:"

_BATCH_ROWS = 256

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubInput:
    """One split of a data set.

    Attributes:
        name: of the data set, or its folder.
        config: of the data set's; None for its default.
        split: "train" and so on.
        field: with the texts.
        num_shards: files that it is read from.
        num_bytes: text in it, where it says so.
        version: differs where its files do.
    """

    name: str
    config: str | None
    split: str
    field: str
    num_shards: int
    num_bytes: int | None
    version: str

    @property
    def expected_bytes(self) -> int | None:
        """About how much text it holds, where it says so."""
        return self.num_bytes

    def identity(self) -> list[Any]:
        """Its name, split and version."""
        name = f"{PREFIX}{self.name}" + ("" if self.config is None else f"/{self.config}")
        return [name, self.split, self.num_shards, self.version]

    def pieces(self, size: int) -> Iterator["HubPiece"]:
        """A piece for each of its files."""
        for index in range(self.num_shards):
            yield HubPiece(input=self, index=index)


@dataclass(frozen=True, kw_only=True)
class HubPiece:
    """One file of a data set."""

    input: HubInput
    index: int

    @property
    def num_bytes(self) -> int | None:
        """Text in it, where that is known."""
        total = self.input.num_bytes
        return None if total is None else total // self.input.num_shards

    @property
    def expected_bytes(self) -> int | None:
        """The same."""
        return self.num_bytes

    def items(self, advance: Advance, *, skip_bad: bool) -> Iterator[Item]:
        """A document for each row, in their order."""
        given, field = self.input, self.input.field
        rows = _stream(_builder(given.name, given.config), given.split)
        number = 0
        shard = rows.shard(num_shards=given.num_shards, index=self.index)
        for batch in _batches(shard, given.name):
            _require_field(given.identity()[0], field, batch)
            for text in batch[field]:
                number += 1
                try:
                    item = _document(text, field)
                except ValueError as error:
                    if not skip_bad:
                        where = f"{given.identity()[0]}, split {given.split}, file {self.index}"
                        raise BadTextError(f"{where}, row {number}: {error}") from None
                    item = LeftOut("bad")
                if isinstance(item, Passage):
                    advance(len(item.text))
                yield item


def open_hub(source: str, split: str, field: str) -> HubInput:
    """The data set of "hf:NAME" or "hf:NAME/CONFIG".

    Names on the hub are OWNER/NAME. Raises ValueError where it isn't there or has no such split.
    """
    name, config = _name_and_config(source.removeprefix(PREFIX))
    builder = _builder(name, config)
    rows = _stream(builder, split)
    if rows.column_names is not None:
        _require_field(source, field, rows.column_names)
    sizes = builder.info.splits or {}
    num_bytes = sizes[split].num_bytes if split in sizes else None
    return HubInput(
        name=name,
        config=config,
        split=split,
        field=field,
        num_shards=max(1, rows.num_shards),
        num_bytes=num_bytes or None,
        version=str(builder.hash),
    )


def _name_and_config(place: str) -> tuple[str, str | None]:
    if place and Path(place).exists():
        return place, None
    folder, _, last = place.rpartition("/")
    if folder and Path(folder).is_dir():
        return folder, last
    parts = place.split("/")
    if len(parts) > 3 or not all(parts):
        raise ValueError(
            f"{PREFIX}{place} must be {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME/CONFIG, or a folder"
        )
    return "/".join(parts[:2]), parts[2] if len(parts) == 3 else None


def _builder(name: str, config: str | None) -> Any:
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            f"{PREFIX}{name} needs the package datasets: pip install 'retnet[data]'"
        ) from error
    datasets.utils.logging.disable_progress_bar()
    try:
        return datasets.load_dataset_builder(name, config)
    except Exception as error:  # of many kinds: no network, no such name, no such configuration
        reason = " ".join(str(error).split())
        raise ValueError(f"{PREFIX}{name} can't be opened: {reason}") from error


def _stream(builder: Any, split: str) -> Any:
    try:
        return builder.as_streaming_dataset(split=split)
    except ValueError as error:
        raise ValueError(f"{PREFIX}{builder.dataset_name}: {error}; name one with split") from error


def _batches(rows: Any, name: str) -> Iterator[Any]:
    """Some rows at a time."""
    try:
        yield from rows.iter(batch_size=_BATCH_ROWS)
    except Exception as error:  # of many kinds: no network any more, a file that is damaged
        reason = " ".join(str(error).split())
        raise OSError(
            f"{PREFIX}{name} can't be read on: {reason}; the same command goes on from here"
        ) from error


def _require_field(source: str, field: str, names: Any) -> None:
    if field not in names:
        there = ", ".join(map(repr, names))
        raise BadTextError(
            f"{source}: there is no field {field!r}, there are {there}; name one with text_field"
        )


def _document(text: object, field: str) -> Item:
    if text is None:
        return LeftOut("empty")
    if not isinstance(text, str):
        raise ValueError(f"{field!r} must be a text, got {str(text)[:50]!r}")
    try:
        return Passage(text.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"half of a surrogate pair at character {error.start}") from None
