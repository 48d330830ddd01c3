import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retnet.config import ModelConfig
from retnet.data.tokens import TokenDocument
from retnet.model import RetNet
from retnet.train.norms import head_norms, held_out_windows

CONFIG = ModelConfig(d_model=32, num_layers=2, num_heads=4)


def build(config: ModelConfig) -> tuple[RetNet, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = RetNet(config, generator=generator).eval()
    return model, torch.randint(config.vocab_size, (3, 20), generator=generator)


def test_they_are_what_the_head_norms_read() -> None:
    """Without a score norm, retention's outputs go straight into the norm of each head."""
    model, tokens = build(CONFIG)
    read: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(inputs[0])

    for layer in model.backbone.layers:
        layer.mixer.head_norm.register_forward_pre_hook(keep)
    _, state = model.features(tokens)
    norms = head_norms(model, tokens)
    for layer, out in enumerate(read[:2]):
        expected = out.pow(2).mean(dim=(0, 1, 3)).sqrt()
        assert norms.outputs[layer] == pytest.approx(expected.tolist(), rel=1e-4)
        expected = state.layers[layer].pow(2).mean(dim=(0, 2, 3)).sqrt()
        assert norms.states[layer] == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_column_of_row_sums_does_not_count() -> None:
    """With score_norm "paper" the op is given a column of ones besides the values."""
    plain, tokens = build(CONFIG)
    paper = RetNet(ModelConfig(**{**CONFIG.to_dict(), "num_layers": 1, "score_norm": "paper"}))
    plain = RetNet(ModelConfig(**{**CONFIG.to_dict(), "num_layers": 1}))
    paper.load_state_dict(plain.state_dict())
    first, second = head_norms(plain, tokens), head_norms(paper, tokens)
    assert first.outputs[0] == pytest.approx(second.outputs[0], rel=1e-5)
    assert first.states[0] == pytest.approx(second.states[0], rel=1e-5)


def documents(*lengths: int) -> list[TokenDocument]:
    return [TokenDocument(np.arange(1, 1 + n, dtype=np.uint16), n) for n in lengths]


@pytest.mark.parametrize(
    ("lengths", "context", "shape"),
    [((1000,), 16, (8, 16)), ((10, 10, 10), 16, (2, 16)), ((3,), 16, (1, 4)), ((0, 3), 2, (2, 2))],
)
def test_windows(lengths: tuple[int, ...], context: int, shape: tuple[int, int]) -> None:
    windows = held_out_windows(documents(*lengths), bos_id=0, context=context)
    assert tuple(windows.shape) == shape
    assert windows.dtype == torch.int64
    assert windows[0, 0] == 0


def test_windows_are_spread_over_all_that_is_held_out() -> None:
    windows = held_out_windows(documents(999), bos_id=0, context=10)
    assert windows[0].tolist() == list(range(10))
    assert windows[-1].tolist() == list(range(990, 1000))


def test_long_windows_are_few() -> None:
    windows = held_out_windows(documents(60_000), bos_id=0, context=6000)
    assert tuple(windows.shape) == (2, 6000)
