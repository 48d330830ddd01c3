"""A state, or a conversation, comes back from the disk bit for bit, or not at all."""

import io
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from retnet.checkpoint import (
    STATE_FORMAT,
    CheckpointError,
    Conversation,
    StateFormat,
    load_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
)
from retnet.checkpoint.state import MOST_UNREAD
from retnet.config import ModelConfig
from retnet.model import RetNet, RetNetState
from tests.disk import full_disk


def make_model(seed: int = 0, **changes: Any) -> RetNet:
    base: dict[str, Any] = {"d_model": 16, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(**{**base, **changes})
    return RetNet(config, generator=torch.Generator().manual_seed(seed)).eval()


def drawn_tokens(*shape: int) -> Tensor:
    return torch.randint(259, shape, generator=torch.Generator().manual_seed(0))


def assert_same_state(actual: RetNetState, expected: RetNetState) -> None:
    assert torch.equal(actual.position, expected.position)
    for mine, theirs in zip(actual.layers, expected.layers, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


# States


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("score_norm", ["none", "paper"])
def test_state_round_trip(state_file: Path, score_norm: str, dtype: torch.dtype) -> None:
    """Rows that have read differently much; what follows is the same to the bit."""
    model = make_model(score_norm=score_norm).to(dtype)
    state = RetNetState.stack([model(drawn_tokens(1, n))[1] for n in (3, 40)])
    save_state(state_file, state, model)
    loaded = load_state(str(state_file), model)
    assert_same_state(loaded, state)
    assert loaded.position.tolist() == [3, 40]
    more = drawn_tokens(2, 4)
    assert torch.equal(model(more, loaded)[0], model(more, state)[0])
    assert [path.name for path in state_file.parent.iterdir()] == [state_file.name]


def test_state_that_is_a_view(state_file: Path) -> None:
    model = make_model()
    _, state = model(drawn_tokens(3, 5))
    view = RetNetState(tuple(layer[1:2] for layer in state.layers), state.position[1:2])
    save_state(state_file, view, model)
    assert_same_state(load_state(state_file, model), state.rows([1]))


@pytest.mark.parametrize(
    "other",
    [
        lambda: make_model(1),
        lambda: make_model(decay="equation8"),
        lambda: make_model(score_norm="decay"),
        lambda: make_model(num_layers=3),
        lambda: make_model(rotary_pairing="halves"),
    ],
    ids=["weights", "decay", "score norm", "layers", "pairing"],
)
def test_state_of_another_model_is_refused(state_file: Path, other: Callable[[], RetNet]) -> None:
    """Even one of the same shapes and weights that forgets or turns differently."""
    model = make_model()
    save_state(state_file, model(drawn_tokens(1, 5))[1], model)
    with pytest.raises(CheckpointError, match=r"state of another model .*load it with the model"):
        load_state(state_file, other())


def test_state_of_the_model_before_training_is_refused(state_file: Path) -> None:
    model = make_model()
    save_state(state_file, model(drawn_tokens(1, 5))[1], model)
    with torch.no_grad():
        model.backbone.layers[1].mixer.k_proj.weight.mul_(1.01)
    with pytest.raises(CheckpointError, match="state of another model"):
        load_state(state_file, model)


def test_state_fits_the_model_cast_to_bf16(tmp_path: Path, state_file: Path) -> None:
    """And back the other way: read the prompt with one, go on with the other."""
    model = make_model()
    save_checkpoint(tmp_path / "run", model)
    _, state = model(drawn_tokens(2, 9))
    save_state(state_file, state, model)
    half = load_checkpoint(tmp_path / "run", dtype=torch.bfloat16)
    assert_same_state(load_state(state_file, half), state)
    save_state(state_file, half(drawn_tokens(2, 9))[1], half)
    assert load_state(state_file, load_checkpoint(tmp_path / "run")).position.tolist() == [9, 9]


def test_full_disk_leaves_the_older_state(state_file: Path) -> None:
    model = make_model()
    _, state = model(drawn_tokens(2, 9))
    save_state(state_file, state, model)
    with full_disk(1_000), pytest.raises(CheckpointError, match="could not save the state to"):
        save_state(state_file, model(drawn_tokens(20, 9))[1], model)
    assert_same_state(load_state(state_file, model), state)
    assert [path.name for path in state_file.parent.iterdir()] == [state_file.name]


def change_state(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata=metadata)

    return rewrite


BROKEN_STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda path: path.unlink(), "there is no file"),
    "cut short": (lambda path: os.truncate(path, 1_000), "damaged or not safetensors"),
    "empty": (lambda path: os.truncate(path, 0), "damaged or not safetensors"),
    "weights": (lambda path: save_file({"w": torch.ones(2)}, path), "is not a saved state"),
    "a missing layer": (change_state(lambda tensors: tensors.pop("layers.1")), "layers.1"),
    "no position": (change_state(lambda tensors: tensors.pop("position")), "position"),
}


@pytest.mark.parametrize("broken", BROKEN_STATES)
def test_broken_state(state_file: Path, broken: str) -> None:
    change, message = BROKEN_STATES[broken]
    model = make_model()
    save_state(state_file, model(drawn_tokens(2, 9))[1], model)
    change(state_file)
    with pytest.raises(CheckpointError, match=message) as error:
        load_state(state_file, model)
    assert str(state_file) in str(error.value)


def test_saving_a_state_nowhere(tmp_path: Path) -> None:
    model = make_model()
    _, state = model(drawn_tokens(1, 2))
    with pytest.raises(CheckpointError, match="could not save the state to"):
        save_state(tmp_path / "missing" / "state.safetensors", state, model)


# Conversations


MODEL = make_model()
FORMAT = StateFormat(MODEL)
with torch.no_grad():
    STATE = MODEL(drawn_tokens(1, 40))[1]
READ = Conversation(STATE, (7, 258))


def assert_same_conversation(actual: Conversation, expected: Conversation) -> None:
    assert actual.unread == expected.unread
    assert (actual.state is None) == (expected.state is None)
    if actual.state is not None and expected.state is not None:
        assert_same_state(actual.state, expected.state)


CONVERSATIONS = {
    "read": (READ, 42),
    "nothing unread": (Conversation(STATE), 40),
    "nothing read": (Conversation(None, (1, 2, 3)), 3),
    "nothing at all": (Conversation(), 0),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_conversation_round_trip(tmp_path: Path, kind: str) -> None:
    """As bytes and as a file; the beginning of the file alone tells how long the text is."""
    conversation, num_tokens = CONVERSATIONS[kind]
    assert conversation.num_tokens == num_tokens
    assert_same_conversation(FORMAT.from_bytes(FORMAT.to_bytes(conversation)), conversation)
    path = tmp_path / "c.safetensors"
    FORMAT.save(path, conversation, created=1_700_000_000)
    assert_same_conversation(FORMAT.load(path), conversation)
    assert path.stat().st_size <= FORMAT.most_bytes
    with path.open("rb") as file:
        summary = FORMAT.summary(file)
    assert (summary.num_tokens, summary.created) == (num_tokens, 1_700_000_000)
    assert summary.state_bytes == conversation.state_bytes


def test_files_of_states_are_conversations(state_file: Path) -> None:
    """Also those written before there were any, and the other way where nothing is unread."""
    old = {f"layers.{i}": layer for i, layer in enumerate(STATE.layers)}
    metadata = {"format": "retnet-state-1", "fingerprint": FORMAT.fingerprint}
    save_file({**old, "position": STATE.position}, state_file, metadata)
    assert_same_conversation(FORMAT.load(state_file), Conversation(STATE))
    assert_same_state(load_state(state_file, MODEL), STATE)
    with state_file.open("rb") as file:
        assert FORMAT.summary(file).created is None
    FORMAT.save(state_file, Conversation(STATE))
    assert_same_state(load_state(state_file, MODEL), STATE)
    FORMAT.save(state_file, READ)
    with pytest.raises(CheckpointError, match="2 tokens that have not been read"):
        load_state(state_file, MODEL)
    save_state(state_file, RetNetState.stack([STATE, STATE]), MODEL)
    with pytest.raises(CheckpointError, match="states of 2 texts"):
        FORMAT.load(state_file)


def test_servers_in_bf16_and_fp32_share_conversations() -> None:
    """The dtype of the weights isn't that of the states; fp64's is another."""
    assert FORMAT.fingerprint == StateFormat(make_model().bfloat16()).fingerprint
    data = StateFormat(make_model().bfloat16()).to_bytes(READ)
    assert_same_conversation(FORMAT.from_bytes(data), READ)
    with pytest.raises(CheckpointError, match=r"layers.0 is F32 .*, expected F64"):
        StateFormat(make_model().double()).from_bytes(data)


def with_layer(value: float) -> RetNetState:
    changed = STATE.layers[1].clone()
    changed[0, 1, 2, 3] = value
    return RetNetState((STATE.layers[0], changed), STATE.position)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (Conversation(STATE, (259,)), r"unread must be in \[0, 259\)"),
        (Conversation(STATE, (-1,)), r"unread must be in \[0, 259\)"),
        (Conversation(None, (1,) * (MOST_UNREAD + 1)), "unread tokens, expected at most"),
        (Conversation(with_layer(math.nan)), "layers.1 holds what is no number"),
        (Conversation(RetNetState(STATE.layers[:1], STATE.position)), "layers.1 is missing"),
        (Conversation(RetNetState(STATE.layers, STATE.position - 41)), "position must be in"),
    ],
    ids=["vocabulary", "negative", "too many", "nan", "another model", "position"],
)
def test_what_could_not_be_loaded_is_not_saved(
    tmp_path: Path, conversation: Conversation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FORMAT.save(tmp_path / "c.safetensors", conversation)
    assert not list(tmp_path.iterdir())


def test_a_conversation_is_one_text() -> None:
    with pytest.raises(ValueError, match="one row, got 2"):
        Conversation(RetNetState.stack([STATE, STATE]))


def changed_file(**tensors: Tensor | None) -> bytes:
    """A file of READ with some tensors replaced; None takes one out."""
    kept: dict[str, Tensor | None] = {f"layers.{i}": x for i, x in enumerate(STATE.layers)}
    kept |= {"position": STATE.position, "unread": torch.tensor([7, 258])}
    kept |= {name.replace("_", "."): tensor for name, tensor in tensors.items()}
    metadata = {"format": STATE_FORMAT, "fingerprint": FORMAT.fingerprint}
    return save({name: x for name, x in kept.items() if x is not None}, metadata)


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(**unread: Any) -> bytes:
    metadata = {"format": STATE_FORMAT, "fingerprint": FORMAT.fingerprint}
    entry = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8], **unread}
    return with_header({"__metadata__": metadata, "unread": entry}, bytes(8))


CRAFTED = {
    "as it is": (changed_file(), None),
    "described": (described(), None),
    "nan": (changed_file(layers_0=STATE.layers[0] * math.nan), "layers.0 holds what is no number"),
    "inf": (changed_file(layers_1=STATE.layers[1] / 0), "layers.1 holds what is no number"),
    "half": (changed_file(layers_1=STATE.layers[1].half()), "layers.1 is F16"),
    "bytes": (changed_file(layers_1=STATE.layers[1].view(torch.uint8)), "layers.1 is U8"),
    "shape": (changed_file(layers_1=STATE.layers[1].mT.contiguous()), "expected F32"),
    "flat": (changed_file(layers_1=STATE.layers[1].flatten()), "expected F32"),
    "rows": (changed_file(position=torch.tensor([4, 4])), "layers.0 is F32"),
    "no rows": (
        changed_file(
            layers_0=STATE.layers[0][:0],
            layers_1=STATE.layers[1][:0],
            position=torch.zeros(0).long(),
        ),
        "states of 0 texts",
    ),
    "scalar position": (changed_file(position=torch.tensor(4)), "position is I64"),
    "float position": (changed_file(position=torch.tensor([4.0])), "position is F32"),
    "negative position": (changed_file(position=torch.tensor([-1])), "position must be in"),
    "huge position": (changed_file(position=torch.tensor([2**62])), "position must be in"),
    "unread out of range": (changed_file(unread=torch.tensor([3, 259])), "unread must be in"),
    "negative unread": (changed_file(unread=torch.tensor([-3])), "unread must be in"),
    "unread in rows": (changed_file(unread=torch.tensor([[3]])), "unread is I64"),
    "much unread": (changed_file(unread=torch.zeros(MOST_UNREAD + 1).long()), "at most 65536"),
    "one more": (changed_file(layers_2=STATE.layers[1].clone()), "layers.2 has no place"),
    "no position": (changed_file(position=None), "position is missing"),
    "half a state": (changed_file(position=None, layers_1=None), "layers.1, position is"),
    "long header": (with_header(b"{" + b" " * 2**19 + b"}"), "longer than any of a state"),
    "header of no end": (b"\xff" * 64, "cut short, or longer"),
    "nested": (with_header(b"[" * 200_000), "no JSON"),
    "long number": (with_header(b'{"a": ' + b"9" * 5_000 + b"}"), "no JSON"),
    "not unicode": (with_header(b'{"\xff\xfe": 1}'), "no JSON"),
    "a list": (with_header([1]), "describes no tensors"),
    "metadata": (with_header({"__metadata__": 3}), "describes no tensors"),
    "a number for a tensor": (with_header({"unread": 3}), "describes no tensors"),
    "no format": (with_header({}), "not a saved state"),
    "negative shape": (described(shape=[-1]), "describes no tensors"),
    "true for one": (described(shape=[True]), "describes no tensors"),
    "huge shape": (described(shape=[2**62]), "damaged"),
    "dimensions": (described(shape=[1] * 1_000), "unread is I64"),
    "backwards": (described(data_offsets=[8, 0]), "damaged"),
    "offsets": (described(data_offsets=[0]), "describes no tensors"),
    "beyond the end": (described(data_offsets=[8, 16]), "damaged"),
    "dtype": (described(dtype="F4"), "unread is F4"),
    "unknown field": (described(dtype=4), "describes no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CRAFTED)
def test_crafted_files(kind: str) -> None:
    """Whoever sends a file may have written anything in it."""
    data, message = CRAFTED[kind]
    if message is None:
        FORMAT.from_bytes(data)
        return
    with pytest.raises(CheckpointError, match=message) as error:
        FORMAT.from_bytes(data, name="body")
    assert "body" in str(error.value)
    assert len(str(error.value)) < 5_000


WHOLE = FORMAT.to_bytes(READ, created=1)


def told(data: bytes) -> Conversation | None:
    """What a file holds; None where it is refused. Nothing else may happen."""
    with suppress(CheckpointError):
        FORMAT.summary(io.BytesIO(data))
    try:
        return FORMAT.from_bytes(data)
    except CheckpointError:
        return None


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_short_is_refused(length: int) -> None:
    assert told(WHOLE[:length]) is None
    with pytest.raises(CheckpointError):
        FORMAT.summary(io.BytesIO(WHOLE[:length]))


_PLACES = st.integers(0, 700) | st.integers(0, len(WHOLE) - 1)  # the header is most fragile


@given(st.lists(st.tuples(_PLACES, st.integers(1, 255)), min_size=1, max_size=4))
def test_a_file_with_flipped_bits(flips: list[tuple[int, int]]) -> None:
    """It is refused, or is of a conversation of the same kind: of numbers, nothing is known."""
    data = bytearray(WHOLE)
    for place, bits in flips:
        data[place] ^= bits
    found = told(bytes(data))
    if found is not None:
        assert len(found.unread) == 2
        FORMAT.to_bytes(found)


@given(st.binary(max_size=200), st.booleans())
def test_anything_at_all(data: bytes, is_header: bool) -> None:
    assert told(with_header(data) if is_header else data) is None


def test_a_file_larger_than_any_conversation(tmp_path: Path) -> None:
    """It is not read to its end."""
    path = tmp_path / "c.safetensors"
    with path.open("wb") as file:
        file.write(WHOLE)
        file.truncate(2**40)  # a hole, which takes no room
    with pytest.raises(CheckpointError, match="which no conversation takes"):
        FORMAT.load(path)


@pytest.mark.parametrize("place", ["missing/c.safetensors", "file/c.safetensors", "folder"])
def test_nowhere_to_save_to(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="could not save the state to"):
        FORMAT.save(tmp_path / place, READ)
    with pytest.raises(CheckpointError, match="there is no file"):
        FORMAT.load(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
