import pytest
import torch

from retnet.train import precision
from retnet.train.precision import choose_precision

CPU = torch.device("cpu")


def test_what_is_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(precision, "_bf16_gain")
    assert choose_precision("fp32", CPU).autocast_dtype is None
    assert choose_precision("bf16", CPU).autocast_dtype == torch.bfloat16


@pytest.mark.parametrize(("gain", "name"), [(2.0, "bf16"), (1.1, "fp32"), (0.5, "fp32")])
def test_auto_takes_bf16_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, name: str
) -> None:
    monkeypatch.setattr(precision, "_bf16_gain", lambda _: gain)
    chosen = choose_precision("auto", CPU)
    assert chosen.name == name
    assert f"{gain:.2f} times the speed of fp32" in chosen.reason


def test_auto_measures_on_this_machine() -> None:
    chosen = choose_precision("auto", CPU)
    assert chosen.name in ("fp32", "bf16")


def test_other_devices_stay_in_fp32() -> None:
    chosen = choose_precision("auto", torch.device("meta"))
    assert chosen.name == "fp32"
