import pytest

from retnet.config import ModelConfig
from retnet.parallel.config import ParallelConfig


def test_round_trip() -> None:
    config = ParallelConfig(shard=2, tensor=4, sequence=8, timeout_s=30)
    assert ParallelConfig.from_dict(config.to_dict()) == config
    assert config.group_size == 64
    with pytest.raises(
        ValueError, match=r"unknown parallel setting 'shards'; did you mean 'shard'"
    ):
        ParallelConfig.from_dict({"shards": 2})


@pytest.mark.parametrize("name", ["shard", "tensor", "sequence"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_sizes_are_counts(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be an integer >= 1, got {value!r}"):
        ParallelConfig(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "10"])
def test_timeout_is_a_time(value: object) -> None:
    with pytest.raises(ValueError, match=r"timeout_s must be a number > 0"):
        ParallelConfig(timeout_s=value)


def test_replicas() -> None:
    config = ParallelConfig(shard=2, tensor=2)
    assert config.replicas(12) == 3
    message = r"shard 2 \* tensor 2 \* sequence 1 = 4 must divide the number of processes, got 6; "
    with pytest.raises(ValueError, match=message + r".*torchrun --nproc-per-node 4"):
        config.replicas(6)


MODEL = ModelConfig(d_model=48, num_heads=6)


@pytest.mark.parametrize(
    ("config", "model", "message"),
    [
        (ParallelConfig(shard=4), MODEL, r"batch_size must be a multiple of the 8 .*, got 12"),
        (ParallelConfig(sequence=8), MODEL, r"context must be a multiple of sequence 8, got 100"),
        (ParallelConfig(tensor=4), MODEL, r"tensor must divide the model's num_heads 6, got 4"),
        (
            ParallelConfig(tensor=2),
            ModelConfig(d_model=48, num_heads=6, ffn_size=33),
            r"tensor must divide the model's ffn_size 33, got 2",
        ),
        (
            ParallelConfig(tensor=2),
            ModelConfig(d_model=48, num_heads=6, ffn_norm=True),
            r"tensor must be 1 for a model with ffn_norm",
        ),
    ],
    ids=["rows", "tokens", "heads", "width", "norm"],
)
def test_what_does_not_divide(config: ParallelConfig, model: ModelConfig, message: str) -> None:
    """Each error names both numbers, before anything slow has begun."""
    with pytest.raises(ValueError, match=message):
        config.check(model, num_processes=8, batch_size=12, context=100)
    ParallelConfig(tensor=2, sequence=2).check(MODEL, num_processes=8, batch_size=12, context=100)
