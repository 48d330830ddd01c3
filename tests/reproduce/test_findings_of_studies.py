"""What studies conclude from records whose numbers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retnet.reproduce.budgets import COST
from retnet.reproduce.cells import Cell, Record
from retnet.reproduce.comparison import TABLE5, TABLE6
from retnet.reproduce.context import TABLE8
from retnet.reproduce.controls import CONTROLS
from retnet.reproduce.findings import Findings, Table
from retnet.reproduce.recall_study import RECALL
from retnet.reproduce.size import FIGURE5
from retnet.reproduce.study import Ask, Study
from retnet.reproduce.table1 import TABLE1

Result = Callable[[Cell, int], dict[str, Any] | None]


def find(study: Study, result: Result, *, seeds: int = 3) -> Findings:
    """What is found where each cell's result is that of a function of it and its seed."""
    ask = Ask(budget="smoke", seeds=range(seeds), data=Path("nowhere"))
    records = {}
    for cell in study.cells(ask):
        seed = cell.settings.get("training", {}).get("seed", 0)
        found = result(cell, seed)
        if found is not None:
            records[cell.key] = Record(
                key=cell.key, settings=dict(cell.settings), result=found, machine={}, seconds=1.0
            )
    findings = study.find(ask, records)
    assert findings is not None
    json.dumps(findings.to_dict(), allow_nan=False)  # as it is kept
    return findings


def row_of(table: Table, name: str) -> list[str]:
    (row,) = (row for row in table.rows if row[0] == name)
    return list(row)


def held(findings: Findings) -> dict[str, bool]:
    return {check.claim: check.holds for check in findings.checks}


def language(cell: Cell, seed: int) -> dict[str, Any]:
    """RetNet 2.0 bits, RWKV 1.9, others 2.2, a tenth more with each seed."""
    mixer = cell.settings["model"]["mixer"]
    base = {"retention": 2.0, "rwkv": 1.9}.get(mixer, 2.2) + seed / 10
    score = {"windows": base, "bytes": 10, "carried": base + 1}
    if mixer in ("attention", "hyena"):
        del score["carried"]
    return {
        "parameters": 1000,
        "tokens": 10,
        "train_s": 1.0,
        "curve": [[1, 3.0], [2, 2.5 + seed]],
        "bits_per_byte": {each["name"]: dict(score) for each in cell.settings["sets"]},
    }


def test_table5() -> None:
    """Means, spreads, paired differences, and who is ahead for every seed."""
    findings = find(TABLE5, language)
    bits, differences, carried = findings.tables
    assert row_of(bits, "RWKV") == ["RWKV", "1,000", "2.000 ± 0.100", "2.000 ± 0.100"]
    # Seeds differ by 0.1 each way; the models always by 0.1: 5 % of 2.1, 4.8 %, and no spread.
    assert row_of(differences, "RWKV") == ["RWKV", "-4.8 ± 0.0 %", "-4.8 ± 0.0 %", "+5.3 %"]
    assert row_of(differences, "Transformer")[-1] == "-"
    assert [row[0] for row in carried.rows] == [
        "RetNet",
        "Linear Transformer",
        "RWKV",
        "H3",
        "RetNet, decays from 1/2",
    ]
    assert held(findings) == {
        "parameters differ by at most 2 %": True,
        "RetNet is ahead of Transformer (not in the paper's table)": True,
        "RetNet is ahead of Linear Transformer": True,
        "RetNet is ahead of RWKV": False,
        "RetNet is ahead of H3": True,
        "RetNet is ahead of Hyena": True,
    }


@pytest.mark.parametrize("missing", [2, 3])
def test_an_interrupted_study(missing: int) -> None:
    """With some of a seed's cells missing, those that both have are compared."""

    def result(cell: Cell, seed: int) -> dict[str, Any] | None:
        is_missing = seed == missing and cell.settings["model"]["mixer"] == "rwkv"
        return None if is_missing else language(cell, seed)

    findings = find(TABLE5, result, seeds=4)
    claims = held(findings)
    assert "RetNet is ahead of Hyena" in claims
    assert claims["RetNet is ahead of RWKV"] is False
    assert row_of(findings.tables[1], "RWKV")[1].startswith("-4.")
    few = find(TABLE5, result, seeds=3 if missing == 2 else 2)
    assert "RetNet is ahead of RWKV" not in held(few)


def test_table6() -> None:
    """A model with something left out that is as good is not what the paper found."""

    def result(cell: Cell, seed: int) -> dict[str, Any]:
        found = language(cell, seed)
        if not cell.settings["model"]["gate"]:
            for score in found["bits_per_byte"].values():
                score["windows"] += 0.05
        return found

    claims = held(find(TABLE6, result))
    assert claims["RetNet is ahead of - swish gate"] is True
    assert claims["RetNet is ahead of - GroupNorm"] is False


def test_table8() -> None:
    """Models that gain by training with more, and of which one gains by reading more too."""

    def result(cell: Cell, seed: int) -> dict[str, Any]:
        found = language(cell, seed)
        is_ours = cell.settings["model"]["mixer"] == "retention"
        read = cell.settings["scoring"].get("contexts", ())
        for score in found["bits_per_byte"].values():
            score["windows"] -= cell.settings["training"]["context"] / 100
            score["by_context"] = {str(each): 2 - is_ours * each / 100 for each in read}
        return found

    findings = find(TABLE8, result)
    trained, read = findings.tables[:2]
    assert row_of(trained, "RetNet") == ["RetNet", "1.940 ± 0.100", "1.780 ± 0.100"]
    assert row_of(read, "RetNet") == ["RetNet", "1.920 ± 0.000", "1.680 ± 0.000"]
    claims = held(findings)
    assert claims["json, Transformer, trained with 32: less than with 16"] is True
    assert claims["json, RetNet, trained with 32, read with 32: less than with 8"] is True
    assert claims["json, Transformer, trained with 32, read with 32: less than with 8"] is False


def test_figure5_takes_what_table5_has() -> None:
    ask = Ask(budget="smoke", seeds=range(1), data=Path("nowhere"))
    five, figure = ({cell.key: cell for cell in study.cells(ask)} for study in (TABLE5, FIGURE5))
    shared = five.keys() & figure.keys()
    assert shared == {"language-retnet-seed0", "language-transformer-seed0"}
    assert all(five[key].settings == figure[key].settings for key in shared)
    findings = find(FIGURE5, language)
    assert row_of(findings.tables[0], "RetNet, d 32")[1:3] == ["1,000", "2.100 ± 0.100"]


def tasks(cell: Cell, seed: int) -> dict[str, Any]:
    """Attention knows all; RetNet more with larger keys, and less of more pairs."""
    model = cell.settings["model"]

    def accuracy(pairs: int) -> float:
        return 0.99 if model["mixer"] == "attention" else model["key_size"] / 20 / pairs + seed / 99

    asked = {
        name: {"accuracy": accuracy(test["num_pairs"])}
        for name, test in cell.settings["tests"].items()
        if "num_pairs" in test
    }
    return {
        "accuracy": accuracy(1),
        "num_parameters": 10,
        "state_bytes": 8 * model["key_size"],
        "nats": 8 * 0.6931471805599453,
        "tests": asked or {"within": {"accuracy": 1.0}, "beyond": {"accuracy": 0.5 + seed / 100}},
    }


def test_recall() -> None:
    held_by_size = {"4": [0.5, 0.1], "16": [1.0, 0.8], "softmax attention": [1.0, 0.99]}

    def result(cell: Cell, seed: int) -> dict[str, Any]:
        return tasks(cell, seed) if "model" in cell.settings else held_by_size

    findings = find(RECALL, result)
    assert row_of(findings.tables[0], "retention, keys of 4")[1:] == [
        "128",
        "0.500 ± 0.000",
        "0.100 ± 0.000",
    ]
    assert row_of(findings.tables[1], "RetNet, keys of 8")[2:] == [
        "64",
        "0.210 ± 0.010",
        "0.110 ± 0.010",
    ]
    assert held(findings) == {
        "control: attention gives back 0.99 of any number of pairs": True,
        "32 pairs: a larger state gives back more, at least by": True,
        "keys of 4: fewer pairs give back more, at least by": True,
        "control: attention recalls 2 pairs, 0.99": True,
        "RetNet, keys of 8: more of 2 pairs than of 4 pairs": True,
    }


def test_controls() -> None:
    assert set(held(find(CONTROLS, tasks)).values()) == {True}

    def leaking(cell: Cell, seed: int) -> dict[str, Any]:
        """A model that knows parity anywhere, and random bytes for less than they have."""
        beyond = {"within": {"accuracy": 1.0}, "beyond": {"accuracy": 0.6}}
        return {**tasks(cell, seed), "nats": 5.5, "tests": beyond}

    assert set(held(find(CONTROLS, leaking)).values()) == {False}


def test_table1() -> None:
    """Exponents of costs that are known."""
    lengths = COST["smoke"].decoding

    def result(cell: Cell, _: int) -> dict[str, Any]:
        grows = cell.settings["model"]["mixer"] in ("attention", "hyena")
        powers = {True: 1.0, False: 0.0} if "steps" in cell.settings else {True: 2.0, False: 1.0}
        values = [length ** powers[grows] for length in lengths]
        memory = "state_bytes" if "steps" in cell.settings else "peak_bytes"
        return {"busy": 0.0, "step_s": [[each] * 3 for each in values], memory: values}

    findings = find(TABLE1, result)
    assert row_of(findings.tables[0], "RetNet")[1:] == [
        "0.00 (0.00 to 0.00)",
        "0.00",
        "O(1)",
        "1.00 (1.00 to 1.00)",
        "1.00",
        "O(N)",
    ]
    assert row_of(findings.tables[0], "Transformer, not fused")[4:] == [
        "2.00 (2.00 to 2.00)",
        "2.00",
        "O(N²)",
    ]
    assert set(held(findings).values()) == {True}
