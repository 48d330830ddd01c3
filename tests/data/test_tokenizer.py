import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.data.tokenizer import ByteTokenizer, load_tokenizer

AWKWARD = 'naïve 日本語 🙂\r\n\t\0 <pad><bos><eos> "quoted"  two spaces \x7f \u00a0'


def test_ids_are_bytes_after_three_specials() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.vocab_size == 259
    assert tokenizer.encode("aé") == [97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert tokenizer.encode(b"\x00\xff") == [3, 258]
    assert tokenizer.encode("") == []


@given(st.binary())
def test_bytes_survive(data: bytes) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode_array(data)
    assert ids.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data


def test_special_names_in_a_text_are_text() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("<eos><bos><pad>")
    assert min(ids) >= 3
    assert tokenizer.decode(ids) == "<eos><bos><pad>"


def test_decoding_drops_specials_and_marks_broken_characters() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode([1, *tokenizer.encode("ok"), 2, 0]) == "ok"
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_what_cannot_be_coded_is_refused() -> None:
    tokenizer = ByteTokenizer()
    with pytest.raises(ValueError, match=r"ids must be in \[0, 259\), got 259"):
        tokenizer.decode([5, 259])
    with pytest.raises(ValueError, match="got -1"):
        tokenizer.decode([-1])
    with pytest.raises(ValueError, match="lone surrogate at character 2"):
        tokenizer.encode("ab\udcff")


def test_transformers_load_the_saved_files_alone(tmp_path: Path) -> None:
    """AutoTokenizer gives our ids after bos, and never parses specials in text."""
    from transformers import AutoTokenizer

    ours = ByteTokenizer()
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = AWKWARD + bytes(range(128)).decode() + "".join(map(chr, range(0x80, 0x180)))
    assert theirs(text)["input_ids"] == [ours.bos_id, *ours.encode(text)]
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert theirs("a", "b")["input_ids"] == [1, 100, 1, 101]
    assert theirs.decode(ours.encode(text)) == text
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert len(theirs) == 259
    padded = theirs(["a", "abc"], padding=True)
    assert padded["input_ids"][0] == [0, 0, 1, 100]


def test_loading(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path / "new" / "folder")
    assert load_tokenizer(tmp_path / "new" / "folder").encode("x") == [123]


def test_loads_what_transformers_saved_again(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ByteTokenizer().save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert isinstance(load_tokenizer(tmp_path / "theirs"), ByteTokenizer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tokenizer.json in"),
        ("{broken", "is not a readable tokenizer"),
        ("[]", "is not a readable tokenizer"),
        ('{"model": []}', "is not a readable tokenizer"),
        (
            json.dumps({"model": {"vocab": {"a": 0}, "merges": []}}),
            "1 tokens, .*load_any_tok",
        ),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_with_merges_is_refused(tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [["a", "b"]]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not the byte tokenizer"):
        load_tokenizer(tmp_path)
