"""Other tokens than bytes: given tokenizers, and those that are trained on the text."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from retnet.data.prepare import encoders
from retnet.data.prepare.config import PrepareConfig
from retnet.data.prepare.encoders import PretrainedEncoder
from retnet.data.prepare.tokenizing import find_tokenizer, sample
from retnet.data.pretrained import PretrainedTokenizer
from retnet.data.shards import read_header
from retnet.data.tokens import load_tokens
from tests.data.prepare.conftest import Prepare, contents, train_of, validation_of

TEXTS = [f"hello world {number}, naïve <eos> 日本語 🙂\r\n\n two  spaces\n" for number in range(50)]


def write_lines(path: str, texts: list[str]) -> str:
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def make_tokenizer(
    directory: str, *, bos: str | None = None, eos: str | None = "<end>", extra: int = 0
) -> str:
    """Byte-level BPE like GPT-2's. extra: ids beyond those that text becomes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<end>", "<begin>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([f"~{number}~" for number in range(extra)])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    # As some are published: nobody wants long texts to be cut here.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    Path(directory).mkdir()
    tokenizer.save(f"{directory}/tokenizer.json")
    if eos is not None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
        Path(f"{directory}/tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def both(directory: str = "out") -> list[bytes]:
    return sorted(train_of(directory) + validation_of(directory))


def encoded(texts: list[str]) -> list[bytes]:
    return sorted(text.encode() for text in texts)


@pytest.mark.parametrize(("bos", "bos_id"), [(None, 0), ("<begin>", 1)])
def test_a_given_tokenizer(prepare_here: Prepare, bos: str | None, bos_id: int) -> None:
    """Its bos begins documents, or its eos where it has none; ids are those it gives itself."""
    make_tokenizer("given", bos=bos)
    write_lines("a.jsonl", TEXTS)
    header = prepare_here("a.jsonl", tokenizer="given", shard_bytes=500, workers=2).header
    assert (header.bos_id, header.eos_id, header.dtype) == (bos_id, 0, "uint16")
    assert both() == encoded(TEXTS)
    data = load_tokens("out")
    assert (data.bos_id, data.eos_id, data.vocab_size) == (bos_id, 0, 330)
    tokenizer = PretrainedTokenizer("given")
    for document in data.validation:
        text = tokenizer.decode(document.ids.tolist())
        assert document.ids.tolist() == tokenizer.encode(text)
        assert document.num_bytes == len(text.encode())
    assert data.tokenizer.fingerprint == tokenizer.fingerprint


def test_more_ids_than_two_bytes_hold(prepare_here: Prepare) -> None:
    make_tokenizer("given", extra=70_000)
    write_lines("a.jsonl", [*TEXTS, "~69999~"])
    done = prepare_here("a.jsonl", tokenizer="given", validation_share=1e-9)
    assert (done.header.dtype, done.header.vocab_size) == ("uint32", 70_330)
    assert both() == encoded([*TEXTS, "~69999~"])
    ids = load_tokens("out").train.read(0, len(load_tokens("out").train))
    assert ids.dtype == np.uint32
    assert ids.max() > 1 << 16


@pytest.mark.parametrize("name", ["given/tokenizer.json", "other.json"])
def test_a_single_file(prepare_here: Prepare, name: str) -> None:
    """With what is beside it, if it has the usual name; alone, if the token that ends is named."""
    make_tokenizer("given")
    Path("other.json").write_bytes(Path("given/tokenizer.json").read_bytes())
    write_lines("a.jsonl", TEXTS)
    if name == "other.json":
        with pytest.raises(ValueError, match="name no token that ends a text, or one that it has"):
            prepare_here("a.jsonl", tokenizer=name)
        prepare_here("a.jsonl", tokenizer=name, eos_token="<end>", out="named")
        assert read_header("named").eos_id == 0
        assert both("named") == encoded(TEXTS)
    else:
        prepare_here("a.jsonl", tokenizer=name)
        assert both() == encoded(TEXTS)


def test_an_eos_that_is_not_there(prepare_here: Prepare) -> None:
    make_tokenizer("given", eos=None)
    write_lines("a.jsonl", TEXTS)
    with pytest.raises(ValueError, match="or one that it has not; pass one of its tokens"):
        prepare_here("a.jsonl", tokenizer="given", eos_token="<fin>")


def test_training_one(prepare_here: Prepare) -> None:
    """Special tokens as the byte tokenizer's; Transformers load it, and give the same ids."""
    from transformers import AutoTokenizer

    write_lines("a.jsonl", TEXTS)
    header = prepare_here("a.jsonl", train_bpe=300, shard_bytes=500).header
    assert (header.bos_id, header.eos_id, header.vocab_size) == (1, 2, 300)
    assert both() == encoded(TEXTS)
    data = load_tokens("out")
    assert len(data.train) < 0.8 * data.train_bytes
    theirs = AutoTokenizer.from_pretrained("out")
    text = TEXTS[0]
    assert theirs(text)["input_ids"] == [1, *data.tokenizer.encode(text)]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    prepare_here("a.jsonl", train_bpe=300, shard_bytes=500, workers=2, out="other")
    assert contents("other") == contents("out")


def test_it_does_not_see_what_is_held_out(prepare_here: Prepare) -> None:
    from retnet.data.prepare.plan import make_plan
    from retnet.data.prepare.sources import Finder

    write_lines("a.jsonl", TEXTS)
    prepare_here("a.jsonl", validation_share=0.3)
    finder = Finder(text_field="text", split="train", division=None, leave_out=Path("out"))
    config = PrepareConfig(sources=("a.jsonl",), validation_share=0.3)
    units = list(make_plan(config, finder.find(["a.jsonl"]), None).train)
    assert [text.encode() for text in sample(units, 10**6)] == train_of()


@pytest.mark.parametrize("num_bytes", [1, 100, 1000, 2900])
def test_a_sample_is_bounded_and_spread(prepare_here: Prepare, num_bytes: int) -> None:
    from retnet.data.prepare.plan import make_plan
    from retnet.data.prepare.sources import Finder

    write_lines("a.jsonl", TEXTS)
    finder = Finder(text_field="text", split="train", division=None, leave_out=Path("out"))
    config = PrepareConfig(sources=("a.jsonl",), validation_share=1e-9, shard_bytes=300)
    units = list(make_plan(config, finder.find(["a.jsonl"]), None).train)
    texts = list(sample(units, num_bytes))
    assert num_bytes - 200 <= sum(len(text.encode()) for text in texts) <= num_bytes
    if num_bytes == 1000:
        numbers = [int(text.split()[2].strip(",")) for text in texts if text.count(" ") > 3]
        assert numbers[0] == 0
        assert numbers[-1] > 40
        assert numbers == sorted(numbers)


def test_fewer_tokens_than_were_asked_for(
    prepare_here: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    write_lines("a.jsonl", ["abc abc"] * 20 + ["abd"])
    with caplog.at_level("INFO", logger="retnet"):
        done = prepare_here("a.jsonl", train_bpe=5000)
    assert done.header.vocab_size < 300
    assert f"only {done.header.vocab_size} tokens to learn" in caplog.text


def test_going_on_after_the_tokenizer_was_trained(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not trained again."""
    from tests.data.prepare.test_run import interrupt

    write_lines("a.jsonl", TEXTS)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", train_bpe=300, shard_bytes=500)
    monkeypatch.setattr(trainers, "BpeTrainer", None)
    prepare_here("a.jsonl", train_bpe=300, shard_bytes=500)
    assert both() == encoded(TEXTS)


def test_another_tokenizer_at_the_same_place(
    prepare_here: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.data.prepare.test_run import interrupt

    make_tokenizer("given")
    write_lines("a.jsonl", TEXTS)
    with monkeypatch.context() as patched:
        interrupt(patched, 1)
        with pytest.raises(OSError, match="No space left"):
            prepare_here("a.jsonl", tokenizer="given", shard_bytes=500)
    path = Path("given/tokenizer.json")
    path.write_text(path.read_text().replace("hello", "hullo"))
    with pytest.raises(ValueError, match="unfinished preparation, and the tokenizer's files have"):
        prepare_here("a.jsonl", tokenizer="given", shard_bytes=500)


def test_names_of_the_hub_are_looked_for_in_its_cache_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is downloaded that wasn't asked for."""
    from transformers.utils import hub

    make_tokenizer(str(tmp_path / "cached"))
    asked = []

    def cached_file(name: str, file: str, *, local_files_only: bool, **_: Any) -> str | None:
        asked.append(local_files_only)
        if name != "owner/name":
            raise OSError(f"{name} is not there")
        path = tmp_path / "cached" / file
        return str(path) if path.is_file() else None

    monkeypatch.setattr(hub, "cached_file", cached_file)
    files = find_tokenizer(PrepareConfig(sources=("a",), tokenizer="owner/name"))
    assert files is not None
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    with pytest.raises(ValueError, match=r"'gpt2' is no file or folder, and not in the cache .* -"):
        find_tokenizer(PrepareConfig(sources=("a",), tokenizer="gpt2"))
    assert all(asked)
    with pytest.raises(ValueError, match="name one that is"):
        find_tokenizer(PrepareConfig(sources=("a",), tokenizer="gpt2", download=True))
    assert not asked[-1]


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer '.*' holds no tokenizer\.json"):
        find_tokenizer(PrepareConfig(sources=("a",), tokenizer=str(tmp_path)))


def test_long_texts_are_cut_where_tokens_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ids are those of the whole; encoding all at once takes a hundred times their bytes."""
    tokenizer = PretrainedTokenizer(make_tokenizer(str(tmp_path / "given")))
    monkeypatch.setattr(encoders, "_LONGEST_TEXT_BYTES", 40)
    encoder = PretrainedEncoder(tokenizer)
    lines = st.lists(
        st.sampled_from(["hello world\n", "a\n", "naïve 日本語\n", "end.\n"]), min_size=9
    )

    @given(lines)
    def hold(lines: list[str]) -> None:
        text = "".join(lines)
        ids, lengths = encoder.encode([text.encode(), b"", text.encode()])
        whole = [0, *tokenizer.encode(text)]
        assert ids.tolist() == [*whole, 0, *whole]
        assert lengths.tolist() == [len(whole), 1, len(whole)]

    hold()


def test_parts_of_long_texts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no line ends, too; and never inside of a character."""
    monkeypatch.setattr(encoders, "_LONGEST_TEXT_BYTES", 9)

    @given(st.text(st.sampled_from("aä日🙂 \n"), max_size=60))
    def hold(text: str) -> None:
        parts = encoders._parts(text.encode())
        assert "".join(part.decode() for part in parts) == text
        assert all(len(part) <= 9 for part in parts)
        assert all(parts) or not text
        assert all(len(one) > 5 or one.endswith(b"\n") for one, _ in pairwise(parts))

    hold()
