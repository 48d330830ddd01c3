"""Other models' tokenizers: the bytes of each token, joined, are the text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from retnet.data.pretrained import PretrainedTokenizer, load_any_tokenizer
from retnet.data.tokenizer import ByteTokenizer

TEXTS = [
    "hello world",
    "  two  spaces, naïve 日本語 🙂\n\ttabs\n",
    "<s> and </s> are text here",
    "",
]
CORPUS = ["hello hello world, hello naïve world"] * 20


def save(tokenizer: Any, directory: Path, **settings: Any) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def byte_level(directory: Path, *, with_bos: bool = False, **settings: Any) -> Path:
    """As GPT-2's: merges over characters that stand for bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("  two  ", special=False, normalized=False)])
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return save(tokenizer, directory, **settings)


def sentencepiece(directory: Path, **settings: Any) -> Path:
    """As Llama's: spaces are U+2581, what no piece covers is bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"helowrdnaïv,", "he", "ll", "hell", "hello", "▁hello"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return save(tokenizer, directory, **settings)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_token_by_token(make: Any, text: str, tmp_path: Path) -> None:
    """Each token's bytes, which may end inside a character; specials in a text are text."""
    tokenizer = PretrainedTokenizer(make(tmp_path))
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.decode_bytes([index]) for index in ids) == text.encode()
    assert tokenizer.decode(ids) == text
    specials = [Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<s>")]
    assert not set(specials) & set(ids)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_merged_tokens_are_used(make: Any, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(make(tmp_path))
    assert len(tokenizer.encode(" hello hello")) < 6


def test_special_tokens(tmp_path: Path) -> None:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    tokenizer = PretrainedTokenizer(sentencepiece(tmp_path, **settings))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert tokenizer.decode([1, 2]) == ""
    assert tokenizer.vocab_size == 277
    assert tokenizer.decode([277]) == "\ufffd"
    with pytest.raises(ValueError, match="ids must be >= 0, got -1"):
        tokenizer.decode([-1])


@pytest.mark.parametrize(
    ("with_bos", "settings", "expected"),
    [
        (True, {}, 0),
        (False, {}, None),
        (False, {"bos_token": "<s>"}, None),
        (False, {"bos_token": "<s>", "add_bos_token": True}, 0),
        (True, {"bos_token": "<s>", "add_bos_token": False}, None),
        (True, {"bos_token": "<s>", "eos_token": "<s>"}, 0),
    ],
)
def test_bos_is_what_the_tokenizer_puts_first(
    with_bos: bool, settings: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    tokenizer = PretrainedTokenizer(byte_level(tmp_path, with_bos=with_bos, **settings))
    assert tokenizer.bos_id == expected


def test_special_tokens_map(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert PretrainedTokenizer(tmp_path).eos_id == 1


def test_without_settings(tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert PretrainedTokenizer(tmp_path).eos_id is None


def test_for_a_model(tmp_path: Path) -> None:
    """Ours or another's; one with more ids than the model has rows is refused."""
    ByteTokenizer().save(tmp_path / "ours")
    assert isinstance(load_any_tokenizer(tmp_path / "ours", vocab_size=259), ByteTokenizer)
    with pytest.raises(ValueError, match="has 259 ids and the model a vocabulary of 258"):
        load_any_tokenizer(tmp_path / "ours", vocab_size=258)
    other = sentencepiece(tmp_path)
    assert isinstance(load_any_tokenizer(other, vocab_size=277), PretrainedTokenizer)
    with pytest.raises(ValueError, match=r"277 ids .* of 276; it is the tokenizer of another"):
        load_any_tokenizer(other, vocab_size=276)
    with pytest.raises(ValueError, match=r"no tokenizer.json in"):
        load_any_tokenizer(tmp_path / "nowhere", vocab_size=277)


def test_kinds_that_are_not_read(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="decodes by WordPiece; only byte-level"):
        load_any_tokenizer(save(tokenizer, tmp_path), vocab_size=10)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", '{"model": {"vocab": {}}}', "is not a readable tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json can't be read as JSON"),
    ],
)
def test_broken_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_any_tokenizer(tmp_path, vocab_size=1000)
