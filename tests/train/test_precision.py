import pytest
import torch

from retnet.train import precision
from retnet.train.precision import choose_precision

CPU = torch.device("cpu")


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "_matmul_s")
    assert choose_precision("fp32", CPU, num_rows=1, width=1).autocast_dtype is None
    assert choose_precision("bf16", CPU, num_rows=1, width=1).autocast_dtype == torch.bfloat16


@pytest.mark.parametrize(("bf16_s", "name"), [(0.5, "bf16"), (0.9, "fp32"), (2.0, "fp32")])
def test_auto_takes_bf16_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, bf16_s: float, name: str
) -> None:
    times = {torch.float32: 1.0, torch.bfloat16: bf16_s}
    monkeypatch.setattr(precision, "_matmul_s", lambda dtype, *_: times[dtype])
    chosen = choose_precision("auto", CPU, num_rows=1, width=1)
    assert chosen.name == name
    assert f"{1 / bf16_s:.2f} times the speed of fp32" in chosen.reason


def test_auto_measures_on_this_machine() -> None:
    chosen = choose_precision("auto", CPU, num_rows=64, width=32)
    assert chosen.name in ("fp32", "bf16")


def test_other_devices_stay_in_fp32() -> None:
    chosen = choose_precision("auto", torch.device("meta"), num_rows=1, width=1)
    assert chosen.name == "fp32"
