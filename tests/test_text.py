"""Text as it comes: whole characters only, up to the first stop string, whatever the pieces are."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.text import UntilStop, complete

BOS, EOS = ByteTokenizer.bos_id, ByteTokenizer.eos_id


class Parrot(RetNet):
    """A model that says given tokens one after the other, whatever it reads; then only pad."""

    def __init__(self, says: Sequence[int]) -> None:
        sizes = {"d_model": 4, "num_layers": 1, "num_heads": 1}
        super().__init__(ModelConfig(vocab_size=ByteTokenizer.vocab_size, **sizes))
        self.says = list(says)
        self.heard: list[list[int]] = []
        self.eval()

    def features(self, tokens, state=None, **options):
        self.heard.append(tokens[0].tolist())
        return super().features(tokens, state, **options)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        said = len(self.heard) - 1
        scores = torch.zeros(1, ByteTokenizer.vocab_size)
        scores[0, self.says[said] if said < len(self.says) else ByteTokenizer.pad_id] = 1.0
        return scores


class WordTokenizer(ByteTokenizer):
    """One whose ids are words of several bytes; they may begin and end within a character."""

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = words

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.words[i - self.num_special] for i in ids if i >= self.num_special)


def ids_of(data: bytes) -> list[int]:
    return [byte + ByteTokenizer.num_special for byte in data]


def pieces_of(
    says: Sequence[int], tokenizer: ByteTokenizer | None = None, *, stop: tuple[str, ...] = ()
) -> list[str]:
    params = SamplingParams(temperature=0, max_tokens=len(says), stop=stop)
    return list(complete(Parrot(says), tokenizer or ByteTokenizer(), "", params))


def until_stop(pieces: Sequence[str], stops: Sequence[str]) -> list[str]:
    """What passes of some pieces, one after the other."""
    text = UntilStop(stops)
    return [*filter(None, [*map(text.push, pieces), text.finish()])]


def splits(text: str) -> Iterator[list[str]]:
    """Every way to cut a text into pieces."""
    for cuts in range(2 ** max(len(text) - 1, 0)):
        pieces = [text[:1]]
        for n, character in enumerate(text[1:]):
            if cuts >> n & 1:
                pieces.append("")
            pieces[-1] += character
        yield pieces


class BareTokenizer(ByteTokenizer):
    """One that marks no beginnings and perhaps no ends."""

    bos_id = None

    def __init__(self, eos_id: int | None) -> None:
        self.eos_id = eos_id


# Beginnings and ends


def test_a_tokenizer_without_a_beginning() -> None:
    """Nothing is put before a prompt; without one, what ends a document begins the next."""
    for prompt, expected in (("ab", ids_of(b"ab")), ("", [EOS])):
        model = Parrot([*ids_of(b"x"), EOS, *ids_of(b"y")])
        params = SamplingParams(temperature=0, max_tokens=3)
        assert list(complete(model, BareTokenizer(EOS), prompt, params)) == ["x"]
        assert model.heard[0] == expected


def test_a_tokenizer_without_an_end() -> None:
    model = Parrot([*ids_of(b"x"), EOS, *ids_of(b"y")])
    params = SamplingParams(temperature=0, max_tokens=3)
    assert list(complete(model, BareTokenizer(None), "a", params)) == ["x", "y"]
    with pytest.raises(ValueError, match="prompt must not be empty: the tokenizer has no token"):
        list(complete(model, BareTokenizer(None), "", params))


# Characters


def test_a_character_comes_whole_or_not_at_all() -> None:
    text = "añ€😀"  # Of one, two, three and four bytes.
    assert pieces_of(ids_of(text.encode())) == ["a", "ñ", "€", "😀"]


@given(text=st.text(max_size=12), data=st.data())
def test_no_piece_has_half_a_character(text: str, data: st.DataObject) -> None:
    """With tokens of any number of bytes."""
    encoded = text.encode()
    cuts = data.draw(st.lists(st.integers(0, len(encoded)), max_size=6).map(sorted))
    words = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    ids = range(ByteTokenizer.num_special, ByteTokenizer.num_special + len(words))
    pieces = pieces_of(ids, WordTokenizer(words))
    assert "".join(pieces) == text
    assert all(pieces)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@given(data=st.binary(max_size=12))
@example(data=b"\xf0\x9f\x98")
@example(data=b"a\xff\xc3b\xe2\x82")
@example(data=b"\xed\xa0\x80")
def test_bytes_that_are_not_utf8_are_replaced(data: bytes) -> None:
    """As if they had come at once."""
    assert "".join(pieces_of(ids_of(data))) == data.decode(errors="replace")


def test_special_tokens_have_no_text() -> None:
    """Not even between the bytes of a character."""
    first, second = ids_of("ñ".encode())
    assert pieces_of([BOS, first, ByteTokenizer.pad_id, second, BOS]) == ["ñ"]


# The end


def test_text_ends_at_eos() -> None:
    assert pieces_of([*ids_of(b"ab"), EOS, *ids_of(b"cd")]) == ["a", "b"]


def test_text_ends_at_other_stop_tokens() -> None:
    params = SamplingParams(temperature=0, max_tokens=9, stop_tokens=(ids_of(b"c")[0],))
    model = Parrot(ids_of(b"abcd"))
    assert "".join(complete(model, ByteTokenizer(), "", params)) == "ab"


def test_text_ends_at_the_limit() -> None:
    params = SamplingParams(temperature=0, max_tokens=3)
    assert "".join(complete(Parrot(ids_of(b"abcdef")), ByteTokenizer(), "", params)) == "abc"


def test_text_ends_at_a_stop_string_and_so_does_the_work() -> None:
    params = SamplingParams(temperature=0, max_tokens=50, stop=("\n\n",))
    model = Parrot(ids_of(b"one\n\ntwo"))
    assert "".join(complete(model, ByteTokenizer(), "", params)) == "one"
    assert len(model.heard) == 5


def test_what_may_begin_a_stop_string_is_held_back_no_longer_than_needed() -> None:
    assert pieces_of(ids_of(b"a\nb\n\n")) == ["a", "\n", "b", "\n", "\n"]
    assert pieces_of(ids_of(b"a\nb\n\nc"), stop=("\n\n",)) == ["a", "\nb"]
    assert pieces_of(ids_of(b"a##b#"), stop=("###",)) == ["a", "##b", "#"]


def test_stop_strings_of_characters_of_several_bytes() -> None:
    assert "".join(pieces_of(ids_of("a€b€€c".encode()), stop=("€€",))) == "a€b"


@given(text=st.text("ab", min_size=1, max_size=9), stop=st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_in_any_pieces(text: str, stop: str) -> None:
    for pieces in splits(text):
        assert "".join(until_stop(pieces, (stop,))) == text.partition(stop)[0]


@given(
    text=st.text("abc", min_size=1, max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
@example(text="cacab", stops=["caca", "a"])
def test_several_stop_strings_in_any_pieces(text: str, stops: list[str]) -> None:
    """The text does not depend on how many characters a token brings."""
    results = {"".join(until_stop(pieces, stops)) for pieces in splits(text)}
    assert len(results) == 1


def test_without_stop_strings_pieces_go_through() -> None:
    assert until_stop(["a", "bc", "d"], ()) == ["a", "bc", "d"]
    assert until_stop([], ("x",)) == []


# The prompt


@pytest.mark.parametrize(("prompt", "read"), [("", [BOS]), ("é!", [BOS, *ids_of("é!".encode())])])
def test_a_prompt_begins_a_document(prompt: str, read: list[int]) -> None:
    model = Parrot(ids_of(b"x"))
    params = SamplingParams(temperature=0, max_tokens=1)
    assert list(complete(model, ByteTokenizer(), prompt, params)) == ["x"]
    assert model.heard == [read]


def test_text_of_special_tokens_is_text() -> None:
    model = Parrot(ids_of(b"x"))
    list(complete(model, ByteTokenizer(), "<eos>", SamplingParams(max_tokens=1)))
    assert model.heard == [[BOS, *ids_of(b"<eos>")]]


def test_a_prompt_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        list(complete(Parrot([5]), ByteTokenizer(), "a\ud800", SamplingParams(max_tokens=1)))


def test_seeds_reproduce() -> None:
    config = ModelConfig(d_model=16, num_layers=1, num_heads=2)
    model = RetNet(config, generator=torch.Generator().manual_seed(0)).eval()

    def text(seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        params = SamplingParams(max_tokens=60)
        return "".join(complete(model, ByteTokenizer(), "def ", params, generator=generator))

    assert text(1) == text(1) != text(2)
