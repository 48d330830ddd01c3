import pytest
import torch

from retnet.device import find_device, find_dtype, threads
from retnet.ops.precision import cpu_has_fast_bf16


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device("auto").type == expected
    with pytest.raises(ValueError, match=r"device 'nonsense' cannot be used here: .*; try 'auto'"):
        find_device("nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without cuda")
def test_a_device_that_is_missing_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here") as refused:
        find_device("cuda")
    assert "\n" not in str(refused.value)


def test_dtypes() -> None:
    """The quick one for "auto"."""
    cpu = torch.device("cpu")
    assert find_dtype("fp32", cpu) == torch.float32
    assert find_dtype("bf16", cpu) == torch.bfloat16
    assert find_dtype("auto", cpu) == (torch.bfloat16 if cpu_has_fast_bf16() else torch.float32)
    assert find_dtype("auto", torch.device("meta")) == torch.bfloat16


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before
