"""The decoder by our kernels: what torch's operations find."""

import pytest
import torch

from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.model import RetNet
from retnet.sampling import SamplingParams
from retnet.serve.engine import Engine
from retnet.serve.request import Request
from tests.triton.cases import error

CONFIGS = {
    "as the paper has it": ModelConfig(vocab_size=50, d_model=48, num_layers=2, num_heads=3),
    "rmsnorm": ModelConfig(
        vocab_size=50, d_model=32, num_layers=1, num_heads=2, head_norm="rmsnorm", decay="wide"
    ),
    "a norm with weights": ModelConfig(
        vocab_size=50, d_model=32, num_layers=1, num_heads=2, head_norm_affine=True
    ),
    "the paper's normalisers": ModelConfig(
        vocab_size=50, d_model=32, num_layers=1, num_heads=2, score_norm="paper"
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_steps(name: str) -> None:
    """Of some rows, each for itself, a prompt among them; the others stay as they were."""
    model = RetNet(CONFIGS[name], generator=torch.Generator().manual_seed(0)).eval()
    rng = torch.Generator().manual_seed(1)
    turns = [([3, 0], [1, 1]), ([1, 3], [7, 1]), ([0, 1, 3], [1, 1, 1])]
    tokens = [torch.randint(50, (sum(counts),), generator=rng) for _, counts in turns]
    found = {}
    for kernel in ("torch", "triton"):
        decoder = Decoder(model, kernel=kernel)
        assert decoder.kernel_name == kernel
        state = decoder.new_state(4)
        logits = [
            decoder.step_(text, state, torch.tensor(rows), counts=counts)
            for text, (rows, counts) in zip(tokens, turns, strict=True)
        ]
        found[kernel] = [*logits, *state.layers, state.position]
    for one, other in zip(found["triton"], found["torch"], strict=True):
        assert error(one.double(), other.double()) <= 1e-5
    assert found["triton"][-1].tolist() == [2, 8, 0, 3]


@pytest.mark.slow
def test_a_deferred_state() -> None:
    """For more tokens than lie beside it; a prompt in between, and another state after it."""
    model = RetNet(CONFIGS["rmsnorm"], generator=torch.Generator().manual_seed(0)).eval()
    found = {}
    for name, options in {"torch": {}, "triton": {"defers": True}}.items():
        decoder = Decoder(model, kernel=name, **options)
        rng = torch.Generator().manual_seed(1)
        state, other = decoder.new_state(3), decoder.new_state(1)
        logits = []
        for turn in range(40):
            rows = [[0, 2], [2], [2, 1]][turn % 3]
            counts = [5 if turn == 20 and row == 2 else 1 for row in rows]
            tokens = torch.randint(50, (sum(counts),), generator=rng)
            logits.append(decoder.step_(tokens, state, torch.tensor(rows), counts=counts))
        copied = state.rows(torch.tensor([1]))
        decoder.step_(torch.tensor([3]), other, torch.tensor([0]))  # settles the first
        found[name] = [torch.cat(logits), *state.layers, state.position, copied.position]
    for one, other in zip(found["triton"], found["torch"], strict=True):
        assert error(one.double(), other.double()) <= 1e-5


@pytest.mark.slow
def test_an_engine_with_deferred_states() -> None:
    """Requests that begin, end and hand out states get what they get from torch's operations."""
    model = RetNet(CONFIGS["rmsnorm"], generator=torch.Generator().manual_seed(0)).eval()
    params = SamplingParams(max_tokens=9, temperature=0)
    requests = [
        Request(prompt=(number + 3,) * (number + 2), params=params, returns_state=True)
        for number in range(4)
    ]
    ours, theirs = (
        Engine(Decoder(model, kernel=kernel, defers=True), num_slots=2, prefill_chunk=4)
        for kernel in ("triton", "torch")
    )
    for one, other in zip(ours.generate(requests), theirs.generate(requests), strict=True):
        assert one.tokens == other.tokens
        assert one.state.position.tolist() == other.state.position.tolist()
        for layer, same in zip(one.state.layers, other.state.layers, strict=True):
            assert error(layer.double(), same.double()) <= 1e-5


def test_rows_that_are_not_there() -> None:
    """What a captured step has room for changes nothing."""
    model = RetNet(CONFIGS["rmsnorm"], generator=torch.Generator().manual_seed(0)).eval()
    decoder = Decoder(model, kernel="triton")
    alone, beside = decoder.new_state(3), decoder.new_state(3)
    kernel = decoder._kernel
    one = kernel.read_(torch.tensor([7]), alone, torch.tensor([2]))
    other = kernel.read_(torch.tensor([0, 7, 0]), beside, torch.tensor([-1, 2, -1]))
    torch.testing.assert_close(one[0], other[1])
    for layer, same in zip(alone.layers, beside.layers, strict=True):
        torch.testing.assert_close(layer, same)
    assert beside.position.tolist() == [0, 0, 1]
