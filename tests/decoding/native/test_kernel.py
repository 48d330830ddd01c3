"""The C++ for each kind of processor that this one can stand in for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retnet.decoding import Decoder
from retnet.decoding.native.kernel import INSTRUCTIONS, NativeKernel
from retnet.decoding.quantize import quantize_
from retnet.decoding.reading import Reading
from retnet.decoding.weights import merge_
from retnet.model import RetNetState
from tests.cpus import needs_compiler
from tests.decoding.test_decoder import (
    CONFIGURATIONS,
    VOCAB,
    assert_near,
    copy_of,
    drawn,
    make_model,
)

_INFO = Path("/proc/cpuinfo")
_FLAGS = _INFO.read_text().split() if _INFO.exists() else []
NATIVE = ("-march=native",)
MACHINES = {
    "native": NATIVE,
    **({"no AMX": (*NATIVE, "-mno-amx-bf16")} if "amx_bf16" in _FLAGS else {}),
    **({"AVX-512 alone": ("-march=skylake-avx512",)} if "avx512vl" in _FLAGS else {}),
    **({"AVX2": ("-march=x86-64-v3",)} if "avx2" in _FLAGS else {}),
    **({"SSE2": ("-march=x86-64",)} if "sse2" in _FLAGS else {}),
}
each_machine = pytest.mark.parametrize("machine", list(MACHINES.values()), ids=list(MACHINES))

pytestmark = needs_compiler


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


def step(
    kernel: NativeKernel,
    tokens: Tensor,
    state: RetNetState,
    rows: Tensor,
    counts: list[int] | None = None,
    wanted: list[int] | None = None,
) -> Tensor:
    return kernel.step_(Reading.of(tokens, rows, counts, wanted), state)


@each_machine
@pytest.mark.parametrize("int8", [False, True], ids=["as it is", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["everything", "odd sizes", "swiglu"])
def test_every_row_alone_and_together(
    name: str, dtype: torch.dtype, int8: bool, machine: tuple[str, ...]
) -> None:
    """Near the torch kernel, and for any number of rows and threads the bits of each row alone."""
    model = make_model(dtype, **CONFIGURATIONS[name])
    weights = quantize_(merge_(model)) if int8 else merge_(model)
    kernel, slow = NativeKernel(model, weights, machine), Decoder(model, kernel="torch")
    num_rows = 35  # two whole groups and three more
    state, tokens = slow.new_state(num_rows), drawn(num_rows)
    generator = torch.Generator().manual_seed(1)
    for layer in state.layers:
        layer.normal_(generator=generator)
    state.position.random_(0, 5000, generator=generator)
    alone, slow_state = copy_of(state), copy_of(state)
    expected = torch.cat(
        [step(kernel, tokens[row : row + 1], alone, torch.tensor([row])) for row in range(num_rows)]
    )
    coarse = int8 and dtype == torch.float32
    near = slow.step_(tokens, slow_state, torch.arange(num_rows))
    assert_near(expected, near, dtype, 5e-4 if coarse else None)
    for threads, count in ((1, 35), (2, 35), (3, 18), (2, 2), (3, 3)):
        rows = torch.randperm(num_rows, generator=generator)[:count]
        together = copy_of(state)
        with using_threads(threads):
            logits = step(kernel, tokens[rows], together, rows)
        assert torch.equal(logits, expected[rows])
        for layer, layer_alone in zip(together.layers, alone.layers, strict=True):
            assert torch.equal(layer[rows], layer_alone[rows])


@each_machine
@pytest.mark.parametrize("int8", [False, True], ids=["as it is", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["everything", "odd sizes", "swiglu"])
def test_several_tokens_are_those_one_by_one(
    name: str, dtype: torch.dtype, int8: bool, machine: tuple[str, ...]
) -> None:
    """The same bits wherever a prompt is cut, and whichever rows are read beside it."""
    model = make_model(dtype, **CONFIGURATIONS[name])
    weights = quantize_(merge_(model)) if int8 else merge_(model)
    kernel = NativeKernel(model, weights, machine)
    state = Decoder(model, kernel="torch").new_state(4)
    generator = torch.Generator().manual_seed(2)
    for layer in state.layers:
        layer.normal_(generator=generator)
    state.position.copy_(torch.tensor([3, 0, 70, 900]))
    alone, prompts = copy_of(state), {row: drawn(40, seed=row) for row in range(4)}
    expected = {
        row: torch.cat([step(kernel, token[None], alone, torch.tensor([row])) for token in prompt])
        for row, prompt in prompts.items()
    }
    read, logits = dict.fromkeys(prompts, 0), {row: [torch.empty(0)] for row in prompts}
    for rows, counts, threads in (
        ([2, 0], [17, 1], 1),
        ([0, 1, 3], [5, 40, 38], 2),
        ([3, 0, 2], [2, 34, 1], 3),
        ([2], [22], 2),
    ):
        parts = [prompts[row][read[row] :][:count] for row, count in zip(rows, counts, strict=True)]
        wanted = list(range(sum(counts)))
        with using_threads(threads):
            scores = step(kernel, torch.cat(parts), state, torch.tensor(rows), counts, wanted)
        for row, part in zip(rows, scores.split(counts), strict=True):
            logits[row].append(part)
            read[row] += len(part)
    for row in prompts:
        assert torch.equal(torch.cat(logits[row]), expected[row])
    for layer, layer_alone in zip(state.layers, alone.layers, strict=True):
        assert torch.equal(layer, layer_alone)
    assert torch.equal(state.position, alone.position)


@each_machine
def test_what_is_no_number_stays_in_its_row(machine: tuple[str, ...]) -> None:
    for int8 in (False, True):
        model = make_model(torch.bfloat16)
        weights = quantize_(merge_(model)) if int8 else merge_(model)
        kernel = NativeKernel(model, weights, machine)
        state = Decoder(model, kernel="torch").new_state(4)
        bad = copy_of(state)
        bad.layers[0][1].fill_(float("nan"))
        bad.layers[0][2].fill_(float("inf"))
        tokens, rows = drawn(4), torch.arange(4)
        expected, logits = step(kernel, tokens, state, rows), step(kernel, tokens, bad, rows)
        assert torch.equal(logits[[0, 3]], expected[[0, 3]])
        assert not logits[[1, 2]].isfinite().any()


def test_int8_products_are_exact() -> None:
    """Sums of integers: no processor's order of adding makes a difference beyond the last bits."""
    model = make_model(torch.float32, feed_forward="swiglu")
    weights = quantize_(merge_(model))
    state = Decoder(model, kernel="torch").new_state(3)
    tokens, rows = torch.tensor([1, 2, 3]), torch.arange(3)
    first, *others = (
        step(NativeKernel(model, weights, machine), tokens, copy_of(state), rows)
        for machine in MACHINES.values()
    )
    for logits in others:
        assert_near(logits, first, torch.float32, 1e-4)


def test_instructions() -> None:
    model = make_model()
    kernel = NativeKernel(model, merge_(model))
    expected = "AMX" if "amx_bf16" in _FLAGS else "AVX-512" if "avx512_bf16" in _FLAGS else "plain"
    assert kernel.instructions in INSTRUCTIONS
    assert kernel.instructions == expected


def test_a_token_that_is_not_there_changes_nothing() -> None:
    model = make_model()
    decoder = Decoder(model, kernel="native")
    state = decoder.new_state(2)
    with pytest.raises(ValueError, match="tokens must be ids"):
        decoder.step_(torch.tensor([1, VOCAB]), state, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="tokens must be ids"):
        decoder.step_(torch.tensor([-1]), state, torch.tensor([0]))
    assert state.position.tolist() == [0, 0]
    assert not any(layer.any() for layer in state.layers)
