from pathlib import Path

import pytest
import torch
from torch import nn

from retnet.checkpoint import load_checkpoint, save_checkpoint
from retnet.config import ModelConfig
from retnet.decoding import Decoder
from retnet.decoding.large_pages import LargePages, are_large
from retnet.model import RetNet


@pytest.fixture
def model() -> RetNet:
    torch.manual_seed(0)
    return RetNet(ModelConfig(vocab_size=50, d_model=32, num_layers=2, num_heads=2)).eval()


def test_gives_zeros_that_do_not_overlap() -> None:
    pages = LargePages()
    shapes = [(3, 5), (1,), (7, 11, 2), (2**25,), (2**25,), (4,)]
    given = [pages.zeros(shape, torch.float32) for shape in shapes]
    for i, x in enumerate(given):
        assert x.shape == shapes[i] and x.is_contiguous() and not x.any()
        assert x.data_ptr() % 64 == 0 and are_large(x)
        x.fill_(i + 1)
    assert all(bool((x == i + 1).all()) for i, x in enumerate(given))


def test_memory_outlives_its_giver() -> None:
    x = LargePages().copy(torch.arange(6.0).view(2, 3))
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not are_large(torch.zeros(5))


def test_a_decoder_moves_a_models_matrices_once(model: RetNet) -> None:
    Decoder(model)
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert matrices and all(are_large(matrix) for matrix in matrices)
    before = [matrix.data_ptr() for matrix in matrices]
    Decoder(model)
    assert [matrix.data_ptr() for matrix in matrices] == before


def test_a_decoders_model_is_saved_as_any(model: RetNet, tmp_path: Path) -> None:
    expected = {name: x.clone() for name, x in model.state_dict().items()}
    Decoder(model)
    save_checkpoint(tmp_path / "model", model)
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 2**20
    loaded = load_checkpoint(tmp_path / "model").state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], x) for name, x in expected.items())
