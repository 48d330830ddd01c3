"""What is prepared, and how: one frozen dataclass that checks itself. Imports nothing heavy."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

DEFAULT_OUT = "prepared"

# Settings that don't change what is written, so that an interrupted preparation may change them.
_WITHOUT_EFFECT = ("out", "workers", "skip_bad", "download")
_LEAST = {"train_bpe": 259, "bpe_sample_bytes": 1, "shard_bytes": 1, "max_bytes": 1, "workers": 1}


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    r"""Text, the tokens it becomes, and the folder these are written to.

    Attributes:
        sources: text files, .jsonl or .parquet files, any of these compressed (.gz, .bz2, .xz,
            .zst), folders of them, "stdlib", or "hf:NAME" or "hf:NAME/CONFIG" for a data set of
            the Hugging Face hub or a folder that the package `datasets` reads.
        out: folder to make.
        tokenizer: a tokenizer.json, or a folder with one, or the name of a model on the Hugging
            Face hub whose tokenizer is in its cache here; where it isn't given, tokens are bytes.
        train_bpe: train a tokenizer of so many tokens on the text (byte-level BPE), and use it.
        bpe_sample_bytes: text to train that on, taken evenly from all of it.
        eos_token: the token that ends a document, where the tokenizer's files don't name one.
        text_field: the field or column with the text, in .jsonl and .parquet files and data sets.
        split: of data sets given as hf:NAME.
        split_on: regular expression; a line of a text file in which it is found begins a new
            document: '^ = [^=].* = $' for WikiText. Without this and separator, a file is one.
        separator: a line of a text file that is this and no more stands between two documents and
            is left out: '<|endoftext|>', or '' for empty lines.
        validation: what is held out of training: a source as above. Documents that are in it are
            left out of the text to train on.
        validation_split: of that, where it is given as hf:NAME.
        validation_share: share of the documents to hold out where no validation is given, chosen by
            a hash of their text; by default 0.03, less where that is more than 4 MB, and 0.001
            where the size of the input is not known.
        max_bytes: stop after about so much text.
        shard_bytes: text in a shard; by default a 64th of the input, from 4 MB to 256 MB.
        skip_bad: leave out documents that are not UTF-8, lines that are not JSON and rows without
            text, and count them, instead of stopping there.
        download: allow a tokenizer that is not in the cache to be downloaded.
        workers: processes; by default one for each core.
    """

    sources: tuple[str, ...]
    out: str = DEFAULT_OUT
    tokenizer: str | None = None
    train_bpe: int | None = None
    bpe_sample_bytes: int = 100_000_000
    eos_token: str | None = None
    text_field: str = "text"
    split: str = "train"
    split_on: str | None = None
    separator: str | None = None
    validation: str | None = None
    validation_split: str = "validation"
    validation_share: float | None = None
    max_bytes: int | None = None
    shard_bytes: int | None = None
    skip_bad: bool = False
    download: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        _require(bool(self.sources), "sources must name at least one file, folder or data set")
        for name in ("out", "text_field", "split", "validation_split", "validation", "tokenizer"):
            _require(getattr(self, name) != "", f"{name} must not be empty")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            _require(
                value is None or (_is_integer(value) and value >= least),
                f"{name} must be an integer >= {least}, got {value!r}",
            )
        self._check_share()
        self._check_pairs()
        self._check_pattern()

    def _check_share(self) -> None:
        share = self.validation_share
        _require(
            share is None or (isinstance(share, int | float) and 0 < share < 1),
            f"validation_share must be a number between 0 and 1, got {share!r}; to hold out "
            "certain documents, pass them as validation",
        )

    def _check_pairs(self) -> None:
        for one, other, why in (
            ("tokenizer", "train_bpe", "a tokenizer is given or trained"),
            ("split_on", "separator", "documents begin at a line or after one"),
            ("validation", "validation_share", "documents to hold out are given or chosen"),
        ):
            _require(
                getattr(self, one) is None or getattr(self, other) is None,
                f"{one} and {other} can't go together: {why}; pass one of them",
            )
        _require(
            self.eos_token is None or self.tokenizer is not None,
            "eos_token is for a tokenizer that doesn't name one; pass it with tokenizer",
        )

    def _check_pattern(self) -> None:
        if self.split_on is None:
            return
        try:
            re.compile(self.split_on)
        except re.error as error:
            raise ValueError(
                f"split_on must be a regular expression, got {self.split_on!r}: {error}"
            ) from error

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as plain values for JSON."""
        values = {**asdict(self), "sources": list(self.sources)}
        return {name: value for name, value in values.items() if name not in _WITHOUT_EFFECT}


NAMES = tuple(field.name for field in fields(PrepareConfig))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
