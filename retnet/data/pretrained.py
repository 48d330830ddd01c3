"""Tokenizers that came with other models: what their tokenizer.json says, token by token."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retnet.data.tokenizer import (
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    ByteTokenizer,
    OtherTokenizerError,
    SpecialToken,
    load_tokenizer,
    printable_bytes,
)

# What may stand beside a tokenizer.json, and goes where it goes.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PretrainedTokenizer:
    """A tokenizer.json, read by the `tokenizers` library, that writes bytes.

    As with the byte tokenizer, text is data: the name of a special token in a text is not that
    token. Kinds that are read: byte-level BPE (GPT-2's and most since), and those made by
    SentencePiece (Llama's, Mistral's, T5's).

    Attributes:
        bos_id: what the tokenizer puts before a text; None where it puts nothing.
        eos_id, pad_id: None where it has none.
        vocab_size: its largest id and one.
        special_tokens: those that texts can't name.
        fingerprint: differs where the ids of a text may.
    """

    def __init__(self, directory: str | Path) -> None:
        from tokenizers import Tokenizer

        path = Path(directory) / TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # whatever the library raises
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
        _prepare(self._tokenizer)
        self._within = _without_first_space(path) or self._tokenizer
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._special = {index for index, token in added if token.special}
        self.special_tokens = tuple(
            SpecialToken(token.content, index, token.lstrip, token.rstrip)
            for index, token in added
            if token.special
        )
        self._added = {index: token.content for index, token in added}
        self._is_byte_level = _is_byte_level(path)
        self._files = _read_files(Path(directory))
        self._bytes_of_characters = {char: byte for byte, char in enumerate(printable_bytes())}
        settings = tokenizer_settings(Path(directory))
        self.eos_id = self._named(settings.get("eos_token"))
        self.pad_id = self._named(settings.get("pad_token"))
        self.bos_id = self._first(settings)
        self.fingerprint = _fingerprint(path, self.bos_id, self.eos_id)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos or eos."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_within(self, text: str) -> list[int]:
        """The ids of a text that stands behind others, so without the space that some tokenizers
        put before the first.
        """
        return list(self._within.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of some texts, without bos or eos."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [each.ids for each in encoded]

    def save(self, directory: str | Path) -> None:
        """Write its files, as they were when it was made."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            # Aside, then renamed: a full disk must not cut short the file that was there.
            aside = folder / f".{name}.{os.getpid()}.part"
            try:
                aside.write_bytes(data)
                aside.replace(folder / name)
            finally:
                aside.unlink(missing_ok=True)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, special ones dropped.

        Rows that an embedding has beyond the vocabulary become U+FFFD.
        """
        return b"".join(map(self._bytes_of, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _bytes_of(self, index: int) -> bytes:
        if index < 0:
            raise ValueError(f"ids must be >= 0, got {index}; pass this tokenizer's")
        if index in self._special:
            return b""
        if index in self._added:
            return self._added[index].encode()
        token = self._tokenizer.id_to_token(index)
        if token is None:
            return "\ufffd".encode()
        if self._is_byte_level:
            return bytes(self._bytes_of_characters[character] for character in token)
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()

    def _named(self, token: Any) -> int | None:
        """The id of a token, which settings hold as its text or with that under 'content'."""
        content = token.get("content") if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)

    def _first(self, settings: dict[str, Any]) -> int | None:
        """The id that begins every text, by the settings or by what the tokenizer does."""
        if settings.get("add_bos_token") is not None:
            return self._named(settings.get("bos_token")) if settings["add_bos_token"] else None
        bare, full = (
            self._tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True)
        )
        return full[0] if full[:1] != bare[:1] else None


def load_any_tokenizer(
    directory: str | Path, *, vocab_size: int
) -> ByteTokenizer | PretrainedTokenizer:
    """The tokenizer saved in a directory, ours or another, for a model of this vocabulary.

    Raises:
        ValueError: where there is none, it is of a kind that isn't read, or has ids that the model
            has not.
    """
    tokenizer: ByteTokenizer | PretrainedTokenizer
    try:
        tokenizer = load_tokenizer(directory)
    except OtherTokenizerError:
        tokenizer = PretrainedTokenizer(directory)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {directory} has {tokenizer.vocab_size:,} ids and the model a "
            f"vocabulary of {vocab_size:,}; it is the tokenizer of another model"
        )
    return tokenizer


def _prepare(tokenizer: Any) -> None:
    """Let a tokenizer read all of a text, as data: special tokens' names in it are text too."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True


def _without_first_space(path: Path) -> Any | None:
    """The tokenizer for texts behind others, where those at a beginning get a space."""
    from tokenizers import Tokenizer

    content = json.loads(path.read_text(encoding="utf-8"))
    step = content.get("pre_tokenizer") or {}
    first = [
        each
        for each in step.get("pretokenizers", [step])
        if each.get("type") == "Metaspace" and each.get("prepend_scheme") == "first"
    ]
    if not first:
        return None
    for each in first:
        each["prepend_scheme"] = "never"
    tokenizer = Tokenizer.from_str(json.dumps(content))
    _prepare(tokenizer)
    return tokenizer


def _is_byte_level(path: Path) -> bool:
    """Whether a tokenizer's characters stand for bytes; ValueError for kinds that aren't read."""
    content = json.loads(path.read_text(encoding="utf-8"))
    decoder = content.get("decoder") or {}
    kinds = {each.get("type") for each in decoder.get("decoders", [decoder])}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"}:
        return False
    named = ", ".join(sorted(map(str, kinds)))
    raise ValueError(
        f"{path} decodes by {named}; only byte-level tokenizers and those of SentencePiece are read"
    )


def _read_files(directory: Path) -> dict[str, bytes]:
    paths = (directory / name for name in TOKENIZER_FILES)
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _fingerprint(path: Path, *special: int | None) -> str:
    """Of what a tokenizer.json says, however it is written, and of special ids."""
    content = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps([content, special], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_settings(directory: Path) -> dict[str, Any]:
    """What two files say of special tokens; the first that says something counts."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG_FILE):
        path = directory / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} can't be read as JSON: {error}") from error
            settings |= {key: value for key, value in found.items() if value is not None}
    return settings
