"""The byte tokenizer: three special ids, then every byte. There is nothing it cannot write."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retnet.included import INCLUDED_MODEL

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"
_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


class OtherTokenizerError(ValueError):
    """A tokenizer.json that is another's than ours."""


@dataclass(frozen=True)
class SpecialToken:
    """A token that stands for no text.

    strips_before, strips_after: whether it takes in the blanks there, where a text names it.
    """

    name: str
    id: int
    strips_before: bool = False
    strips_after: bool = False


class ByteTokenizer:
    """Byte b is id b + 3; pad is 0, bos 1, eos 2.

    Text is always data: "<eos>" in a text is five bytes, never the special id.
    """

    pad_id = 0
    bos_id = 1
    eos_id = 2
    num_special = len(_SPECIAL_TOKENS)
    vocab_size = 256 + num_special
    fingerprint = "bytes"
    special_tokens = tuple(SpecialToken(name, i) for i, name in enumerate(_SPECIAL_TOKENS))

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text's UTF-8 bytes, without bos or eos."""
        return self.encode_array(_utf8(text)).tolist()

    def encode_within(self, text: str) -> list[int]:
        """The ids of a text that stands behind others: the same."""
        return self.encode(text)

    def encode_array(self, data: bytes) -> NDArray[np.uint16]:
        """The ids [len(data)] of raw bytes; hundreds of times as fast as `encode`."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16) + np.uint16(self.num_special)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids, special ones dropped; ValueError outside the vocabulary."""
        values = np.fromiter(ids, dtype=np.int64)
        outside = values[(values < 0) | (values >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"ids must be in [0, {self.vocab_size}), got {outside[0]}; pass this tokenizer's"
            )
        return (values[values >= self.num_special] - self.num_special).astype(np.uint8).tobytes()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def save(self, directory: str | Path) -> None:
        """Write the two files that transformers' AutoTokenizer loads without this package."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        settings = json.dumps(_auto_tokenizer_settings(), indent=2) + "\n"
        for name, text in (
            (TOKENIZER_FILE, _fast_tokenizer_json()),
            (TOKENIZER_CONFIG_FILE, settings),
        ):
            # Aside, then renamed: a full disk must not cut short the file that was there.
            aside = folder / f".{name}.{os.getpid()}.part"
            try:
                aside.write_text(text, encoding="utf-8")
                aside.replace(folder / name)
            finally:
                aside.unlink(missing_ok=True)


def load_tokenizer(directory: str | Path = INCLUDED_MODEL) -> ByteTokenizer:
    """The tokenizer saved in a directory, by default that of the model that comes with the package;
    ValueError where there is none, or another kind.
    """
    path = Path(directory) / TOKENIZER_FILE
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
        vocabulary, merges = model["vocab"], model.get("merges")
    except FileNotFoundError:
        raise ValueError(
            f"no {TOKENIZER_FILE} in {directory}; pass a checkpoint directory"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
    if vocabulary != _vocabulary() or merges:
        raise OtherTokenizerError(
            f"{path} is not the byte tokenizer: it has {len(vocabulary)} tokens, expected "
            f"{ByteTokenizer.vocab_size} and no merges; load it with "
            "retnet.data.pretrained.load_any_tokenizer(directory, vocab_size=...)"
        )
    return ByteTokenizer()


def _utf8(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text must be encodable as UTF-8, got a lone surrogate at character {error.start}; "
            "pass bytes instead"
        ) from None


def printable_bytes() -> list[str]:
    """The character that stands for each byte in byte-level BPE files.

    Printable Latin-1 bytes stand for themselves; the others take the characters from U+0100 on, in
    order (GPT-2's table, which the `tokenizers` library has built in).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _vocabulary() -> dict[str, int]:
    return {token: index for index, token in enumerate([*_SPECIAL_TOKENS, *printable_bytes()])}


def _fast_tokenizer_json() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    # A model has seen no document that doesn't begin with bos.
    _, bos, _ = _SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, ByteTokenizer.bos_id)],
    )
    return str(tokenizer.to_str(pretty=True))


def _auto_tokenizer_settings() -> dict[str, Any]:
    pad, bos, eos = _SPECIAL_TOKENS
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "padding_side": "left",
        # Text is data here too: "<eos>" typed by a user is five bytes.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
