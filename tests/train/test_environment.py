import torch

from retnet.train.environment import seed_dropout, separate_randomness


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
