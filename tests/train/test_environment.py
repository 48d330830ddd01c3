import pytest
import torch

from retnet.train.environment import find_device, seed_dropout, separate_randomness, threads


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


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with threads(None):
        assert torch.get_num_threads() == before


def test_dropout_is_a_function_of_seed_and_step() -> None:
    drawn = []
    with separate_randomness(torch.device("cpu")):
        for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            seed_dropout(seed, step)
            drawn.append(tuple(torch.rand(4).tolist()))
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3


def test_global_randomness_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    with separate_randomness(torch.device("cpu")):
        torch.rand(10)
    assert torch.equal(torch.random.get_rng_state(), before)
