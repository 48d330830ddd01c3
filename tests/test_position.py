"""Decay and rotation, against the numbers of the paper and against sums and turns done by hand."""

import cmath
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retnet.config import DecayRule, ModelConfig
from retnet.ops import retention_chunkwise
from retnet.position import (
    decay_sum,
    log_decays,
    make_context,
    rotary_angles,
    rotate,
    rotate_complex,
    rotate_real,
    token_positions,
)


def gammas(rule: DecayRule | tuple[float, ...], num_heads: int) -> list[float]:
    return log_decays(rule, num_heads).exp().tolist()


def test_gammas_of_the_paper() -> None:
    """Eq. 8 and section 3.1, for the 4 heads of its 200M model and the 16 of its 6.7B."""
    assert gammas("equation8", 4) == pytest.approx([0.96875, 0.984375, 0.9921875, 0.99609375])
    assert gammas("linspace", 4) == pytest.approx([0.96875, 0.98760, 0.99508, 0.99805], abs=5e-6)
    assert gammas("equation8", 16)[-1] == pytest.approx(1 - 2**-20, rel=1e-15)
    assert gammas("linspace", 16)[0] == pytest.approx(31 / 32, rel=1e-15)
    assert gammas("linspace", 16)[-1] == pytest.approx(511 / 512, rel=1e-15)
    assert gammas("none", 3) == [1, 1, 1]
    assert gammas((0.5, 1.0, 1e-3), 3) == pytest.approx([0.5, 1.0, 1e-3], rel=1e-15)


def test_the_two_rules_meet_at_five_heads() -> None:
    assert gammas("equation8", 5) == pytest.approx(gammas("linspace", 5), rel=1e-15)
    assert gammas("equation8", 6) != pytest.approx(gammas("linspace", 6), rel=1e-4)


def test_wide_is_linspace_from_one_half() -> None:
    """What is forgotten in a step, 1/2 to 1/512, shrinks by one factor from head to head."""
    forgotten = -torch.expm1(log_decays("wide", 5))
    assert forgotten.tolist() == pytest.approx([1 / 2, 1 / 8, 1 / 32, 1 / 128, 1 / 512])


def test_half_lives_of_the_paper() -> None:
    half_lives = math.log(0.5) / log_decays("linspace", 8)
    assert [round(half_lives[i].item()) for i in (0, -1)] == [22, 355]


def test_one_head() -> None:
    assert gammas("equation8", 1) == gammas("linspace", 1) == pytest.approx([31 / 32])


@pytest.mark.parametrize("num_heads", [8, 32, 64])
def test_many_heads_of_equation8_all_forget(num_heads: int) -> None:
    """1 - 2^-(5+h) is 1 in fp32 from h = 20 on, and in fp64 from 49; its logarithm is exact."""
    actual = log_decays("equation8", num_heads)
    assert (actual < 0).all()
    assert (actual.diff() > 0).all()
    exact = [math.log1p(-(2.0 ** (-5 - head))) for head in range(num_heads)]
    assert actual.tolist() == pytest.approx(exact, rel=1e-15)
    assert (actual.float() < 0).all()


@pytest.mark.parametrize("rule", ["equation8", "linspace", "none", (0.5, 0.9, 1.0, 1.0)])
def test_decays_are_fp64_on_the_cpu_whatever_the_defaults(rule: DecayRule) -> None:
    expected = log_decays(rule, 4)
    with torch.device("meta"):
        actual = log_decays(rule, 4)
    assert actual.device.type == "cpu"
    assert actual.dtype == torch.float64
    assert torch.equal(actual, expected)


GAMMAS = (1e-3, 0.5, 31 / 32, 511 / 512, 1.0)


def test_decay_sum_is_the_sum() -> None:
    """Z_n = sum of gamma^i for i = 0..n, n counted from 0."""
    powers = torch.tensor(GAMMAS, dtype=torch.float64) ** torch.arange(3_000)[:, None]
    expected = powers.cumsum(dim=0)
    positions = torch.arange(3_000)[None]
    actual = decay_sum(torch.tensor(GAMMAS, dtype=torch.float64).log(), positions)
    assert actual.shape == (1, 3_000, 5)
    torch.testing.assert_close(actual[0], expected, rtol=1e-12, atol=0)


def test_decay_sum_of_the_slowest_heads() -> None:
    """For gamma = 1 - e it is n + 1 - e n (n + 1) / 2, e far below what 1 - gamma would keep."""
    log_decay = log_decays("equation8", 60)[-20:]
    epsilon = 2.0 ** -(5 + torch.arange(40, 60, dtype=torch.float64))
    n = torch.tensor([0, 1, 10, 1_000], dtype=torch.float64)[:, None]
    actual = decay_sum(log_decay, n[:, 0].long())
    torch.testing.assert_close(actual, n + 1 - epsilon * n * (n + 1) / 2, rtol=1e-15, atol=0)


def test_rotary_frequencies() -> None:
    """torchscale's run from 1 to 1e-4 with both ends; RoPE's stop one step earlier."""
    one = torch.tensor([1])
    torchscale = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4]
    assert rotary_angles(one, 8, "torchscale")[0].tolist() == pytest.approx(torchscale, rel=1e-14)
    rope = [1, 0.1, 0.01, 0.001]
    assert rotary_angles(one, 8, "rope")[0].tolist() == pytest.approx(rope, rel=1e-14)
    for frequencies in ("torchscale", "rope"):
        assert rotary_angles(one * 7, 2, frequencies).tolist() == [[7.0]]


def test_angles_far_out_are_exact() -> None:
    """At a million tokens fp32 angles would be off by a sixteenth of a radian."""
    angles = rotary_angles(torch.tensor([[1_000_003]]), 8, "rope")
    assert angles.dtype == torch.float64
    assert angles[0, 0].tolist() == pytest.approx([1_000_003 * 10**-i for i in range(4)], rel=1e-14)


def rotation(positions: Tensor, key_size: int = 8) -> Tensor:
    """[1, T, 1, K/2, 2], as a context holds it."""
    angles = rotary_angles(positions[None], key_size, "torchscale")[:, :, None]
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def normal(*shape: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_rotation_is_a_complex_product(pairing: str) -> None:
    """Each pair (a, b) as a + ib, times e^(i angle): by hand, entry by entry."""
    x = normal(1, 3, 2, 4)
    actual = rotate(x, rotation(torch.tensor([0, 1, 50]), 4), pairing)
    first, second = ([0, 2], [1, 3]) if pairing == "interleaved" else ([0, 1], [2, 3])
    for n, position in enumerate((0, 1, 50)):
        for frequency, a, b in zip((1.0, 1e-4), first, second, strict=True):
            for head in range(2):
                turned = complex(x[0, n, head, a], x[0, n, head, b]) * cmath.exp(
                    1j * position * frequency
                )
                assert actual[0, n, head, a].item() == pytest.approx(turned.real, rel=1e-12)
                assert actual[0, n, head, b].item() == pytest.approx(turned.imag, rel=1e-12)


@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_rotation_is_relative_and_keeps_norms(pairing: str) -> None:
    """q_n . k_m depends on n - m only."""
    q, k = normal(1, 1, 3, 8), normal(1, 1, 3, 8).flip(-1)

    def score(n: int, m: int) -> Tensor:
        turned_q = rotate(q, rotation(torch.tensor([n])), pairing)
        turned_k = rotate(k, rotation(torch.tensor([m])), pairing)
        return (turned_q * turned_k).sum(dim=-1)

    assert torch.equal(score(0, 0), (q * k).sum(dim=-1))
    for n, m in ((5, 5), (13, 4), (1009, 1000), (0, 9)):
        torch.testing.assert_close(score(n, m), score(n + 500, m + 500), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(score(13, 4), score(13, 5))
    assert not torch.allclose(score(13, 4), score(4, 13))
    turned = rotate(q, rotation(torch.tensor([77])), pairing)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1), rtol=1e-14, atol=0)


def test_the_two_pairings_are_a_permutation_apart() -> None:
    """Interleaved entries (0, 2, 4, 6, 1, 3, 5, 7) are halves."""
    x, order = normal(2, 5, 3, 8), [0, 2, 4, 6, 1, 3, 5, 7]
    turn = rotation(torch.arange(5))
    interleaved = rotate(x, turn, "interleaved")[..., order]
    assert torch.equal(rotate(x[..., order], turn, "halves"), interleaved)


@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_rotation_in_real_numbers_is_the_same(pairing: str) -> None:
    """What compilers and exporters are given, outputs and gradients."""
    x, turn = normal(2, 9, 3, 8).requires_grad_(), rotation(torch.arange(9))
    complex_, real = (form(x, turn, pairing) for form in (rotate_complex, rotate_real))
    torch.testing.assert_close(real, complex_, rtol=1e-14, atol=1e-14)
    gradients = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (complex_, real))
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pairing", ["interleaved", "halves"])
def test_rotation_is_in_fp32_and_rounded_once(dtype: torch.dtype, pairing: str) -> None:
    x = normal(1, 40, 2, 8).to(dtype)
    turn = rotation(torch.arange(40)).float()
    actual = rotate(x, turn, pairing)
    assert actual.dtype == dtype
    assert torch.equal(actual, rotate(x.float(), turn, pairing).to(dtype))


def test_context_of_bf16_layers_is_fp32_of_fp64() -> None:
    """The context does not follow the weights below fp32; keys alone carry K^-0.5."""
    config = ModelConfig(d_model=32, score_norm="decay")
    positions = torch.tensor([[0, 3, 100_000]])

    def context(dtype: torch.dtype):
        return make_context(
            config,
            positions,
            mask=None,
            segment_ids=None,
            retain=retention_chunkwise,
            dtype=dtype,
        )

    exact, half = context(torch.float64), context(torch.bfloat16)
    angles = rotary_angles(positions, config.key_size, "torchscale")
    turn = torch.view_as_real(torch.polar(torch.ones_like(angles), angles))[:, :, None]
    torch.testing.assert_close(exact.query_rotation, turn, rtol=0, atol=1e-15)
    assert torch.equal(half.query_rotation, exact.query_rotation.float())
    assert torch.equal(half.score_scale, exact.score_scale.float())
    assert torch.equal(half.log_decay, exact.log_decay)
    assert half.log_decay.dtype == torch.float64
    scaled = exact.query_rotation * config.key_size**-0.5
    torch.testing.assert_close(exact.key_rotation, scaled, rtol=1e-15, atol=0)
    assert exact.score_scale.shape == (1, 3, config.num_heads, 1)


def test_a_context_moves_to_another_device() -> None:
    """All of it but the decays, which stay on the CPU wherever a layer is."""
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    context = make_context(
        ModelConfig(d_model=32, score_norm="paper"),
        torch.arange(3)[None],
        mask=tokens == 0,
        segment_ids=tokens,
        retain=retention_chunkwise,
        dtype=torch.float32,
    )
    moved = {name for name, x in vars(context.to("meta")).items() if getattr(x, "is_meta", False)}
    assert moved == vars(context).keys() - {"log_decay", "retain"}


def positions_by_hand(first: int, mask: list[bool], ids: list[int]) -> tuple[list[int | None], int]:
    """Each real token's position in its segment (None for padding), and the next one's."""
    positions: list[int | None] = []
    count = first
    for n, (real, document) in enumerate(zip(mask, ids, strict=True)):
        if n and document != ids[n - 1]:
            count = 0
        positions.append(count if real else None)
        count += real
    return positions, count


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 12),
    with_first=st.booleans(),
    with_mask=st.booleans(),
    with_ids=st.booleans(),
    data=st.data(),
)
def test_token_positions(
    rows: int,
    length: int,
    with_first: bool,
    with_mask: bool,
    with_ids: bool,
    data: st.DataObject,
) -> None:
    """Counted token by token: padding has none, a new segment starts again at 0."""

    def table(values: st.SearchStrategy) -> list[list]:
        row = st.lists(values, min_size=length, max_size=length)
        return data.draw(st.lists(row, min_size=rows, max_size=rows))

    first = data.draw(st.lists(st.integers(0, 50), min_size=rows, max_size=rows))
    first = first if with_first else [0] * rows
    mask = table(st.booleans()) if with_mask else [[True] * length] * rows
    ids = table(st.integers(-1, 1)) if with_ids else [[0] * length] * rows
    positions, after = token_positions(
        torch.zeros(rows, length, dtype=torch.int64),
        torch.tensor(first) if with_first else None,
        torch.tensor(mask) if with_mask else None,
        torch.tensor(ids) if with_ids else None,
    )
    positions = positions.expand(rows, length)
    assert positions.dtype == after.dtype == torch.int64
    for row in range(rows):
        expected, expected_after = positions_by_hand(first[row], mask[row], ids[row])
        for actual, wanted in zip(positions[row].tolist(), expected, strict=True):
            assert actual == wanted if wanted is not None else actual >= 0
        assert after[row] == expected_after


def test_positions_of_no_tokens() -> None:
    tokens = torch.zeros(2, 0, dtype=torch.int64)
    for first in (None, torch.tensor([3, 4])):
        for mask in (None, torch.zeros(2, 0, dtype=torch.bool)):
            _, after = token_positions(tokens, first, mask, None)
            assert after.tolist() == ([0, 0] if first is None else [3, 4])
