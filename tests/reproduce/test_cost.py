"""Costs and their exponents."""

from dataclasses import asdict
from pathlib import Path

import pytest

from retnet.config import ModelConfig
from retnet.reproduce.cells import Place
from retnet.reproduce.cost import (
    exponent,
    exponents,
    measure_decoding,
    measure_step_cost,
    measure_training_cost,
)

LENGTHS = [16, 32, 64]
PLACE = Place(folder=Path(), data=Path(), texts=Path(), device="cpu", threads=1)


def fields(mixer: str) -> dict[str, object]:
    config = ModelConfig(d_model=32, num_layers=1, num_heads=2, mixer=mixer)  # type: ignore[arg-type]
    return asdict(config)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_exponent(power: float) -> None:
    values = [3.0 * length**power for length in LENGTHS]
    assert exponent(LENGTHS, values) == pytest.approx(power, abs=1e-12)


def test_exponents_of_rounds() -> None:
    """One of each round, over all lengths."""
    rounds = [[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]]
    assert exponents(LENGTHS, rounds) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("mixer", "power"),
    [("retention", 0), ("linear", 0), ("rwkv", 0), ("h3", 0), ("attention", 1), ("hyena", 1)],
)
def test_state_of_each_mixer(mixer: str, power: int) -> None:
    """What table 1 says of memory in decoding: exact, for it is counted."""
    found = measure_step_cost(PLACE, model=fields(mixer), lengths=LENGTHS, steps=2, rounds=2)
    assert exponent(LENGTHS, found["state_bytes"]) == pytest.approx(power, abs=1e-9)
    assert [len(rounds) for rounds in found["step_s"]] == [2, 2, 2]
    assert min(min(rounds) for rounds in found["step_s"]) > 0


def test_training() -> None:
    """The scores of attention that isn't fused are in memory."""
    lengths = [128, 1024]
    peaks = [
        measure_training_cost(
            PLACE, model=fields("attention"), lengths=lengths, rounds=1, fused=fused
        )["peak_bytes"]
        for fused in (True, False)
    ]
    scores = 2 * lengths[-1] ** 2 * 4
    assert peaks[1][-1] - peaks[0][-1] > scores


def test_decoding() -> None:
    found = measure_decoding(
        PLACE,
        retnet=fields("retention"),
        transformer=fields("attention"),
        length=8,
        batch_sizes=[1, 2],
        dtype="fp32",
        steps=2,
        rounds=2,
    )
    by_name = {(row["model"], row["batch_size"]): row for row in found["rows"]}
    assert set(by_name) == {
        (name, batch)
        for name in ("RetNet", "RetNet, by torch", "RetNet, plain step", "Transformer")
        for batch in (1, 2)
    }
    assert by_name["RetNet", 2]["state_bytes"] == 2 * 2 * 16 * 32 * 4
    assert by_name["Transformer", 1]["state_bytes"] == 2 * 8 * 32 * 4
