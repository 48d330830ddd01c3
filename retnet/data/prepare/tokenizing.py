"""Which tokenizer is used: its files are gathered in a folder, from which all processes load it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.parts import key_of
from retnet.data.prepare.passages import Passage
from retnet.data.prepare.units import Unit
from retnet.data.prepare.writer import write_text
from retnet.data.pretrained import TOKENIZER_FILES
from retnet.data.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, ByteTokenizer

_SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
_SAMPLED_UNITS = 64


def find_tokenizer(config: PrepareConfig) -> dict[str, bytes] | None:
    """The files of the tokenizer that was given; None where none was."""
    if config.tokenizer is None:
        return None
    path = Path(config.tokenizer)
    if path.is_dir():
        files = _read(path / name for name in TOKENIZER_FILES)
    elif path.is_file() and path.name == TOKENIZER_FILE:
        files = _read(path.with_name(name) for name in TOKENIZER_FILES)
    elif path.is_file():
        files = {TOKENIZER_FILE: path.read_bytes()}
    else:
        files = _read(_cached(config.tokenizer, config.download))
    if TOKENIZER_FILE not in files:
        raise ValueError(f"tokenizer {config.tokenizer!r} holds no {TOKENIZER_FILE}")
    settings = _settings(files.get(TOKENIZER_CONFIG_FILE), config.eos_token)
    return {**files, TOKENIZER_CONFIG_FILE: settings}


def write_tokenizer(directory: Path, files: dict[str, bytes] | None) -> None:
    """Write a tokenizer's files, or those of the byte tokenizer."""
    if files is None:
        ByteTokenizer().save(directory)
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)


def train_tokenizer(directory: Path, units: Iterable[Unit], *, size: int, num_bytes: int) -> int:
    """Train a byte-level BPE of `size` tokens on about `num_bytes` of text; how many it has.

    The text is what some units begin with, spread evenly over all, without what is held out. It is
    the same whatever ran before.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(list(units), num_bytes), trainer)
    _, bos, _ = _SPECIAL_TOKENS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / TOKENIZER_CONFIG_FILE, _own_settings())
    write_text(directory / TOKENIZER_FILE, tokenizer.to_str(pretty=True))
    return int(tokenizer.get_vocab_size())


def sample(units: list[Unit], num_bytes: int) -> Iterator[str]:
    """About `num_bytes` of text, from the beginnings of some units spread evenly over all."""
    count = min(_SAMPLED_UNITS, len(units))
    left = num_bytes
    for number in range(count):
        unit = units[number * len(units) // count]
        # What an earlier unit had not is taken from the later ones.
        wanted = left // (count - number)
        for item in unit.items(lambda _: None):
            if wanted <= 0:
                break
            if isinstance(item, Passage) and not _is_held_out(unit, item):
                text = item.text[:wanted]
                wanted -= len(text)
                left -= len(text)
                yield text.decode(errors="ignore")  # a character that is cut at the end


def _is_held_out(unit: Unit, item: Passage) -> bool:
    rule = unit.rule
    is_short = item.begins and item.ends and len(item.text) <= rule.longest
    return is_short and rule.holds_out(key_of(item.text))


def _read(paths: Iterable[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _cached(name: str, download: bool) -> Iterator[Path]:
    """The files of a tokenizer on the Hugging Face hub."""
    from transformers.utils.hub import cached_file

    try:
        for each in TOKENIZER_FILES:
            path = cached_file(
                name,
                each,
                local_files_only=not download,
                _raise_exceptions_for_missing_entries=each == TOKENIZER_FILE,
                _raise_exceptions_for_connection_errors=each == TOKENIZER_FILE,
            )
            if path is not None:
                yield Path(path)
    except (OSError, ValueError) as error:
        hint = "" if download else ", or pass --download to fetch it from the Hugging Face hub"
        raise ValueError(
            f"tokenizer {name!r} is no file or folder, and not in the cache of Hugging Face "
            f"here; name one that is{hint}"
        ) from error


def _settings(given: bytes | None, eos_token: str | None) -> bytes:
    """A tokenizer_config.json, with an eos where one is named."""
    if given is not None and eos_token is None:
        return given
    settings: dict[str, Any] = json.loads(given) if given else {}
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if eos_token is not None:
        settings["eos_token"] = eos_token
    return (json.dumps(settings, indent=2) + "\n").encode()


def _own_settings() -> str:
    pad, bos, eos = _SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "padding_side": "left",
        # Text is data: "<eos>" typed by a user is no token.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(settings, indent=2) + "\n"
