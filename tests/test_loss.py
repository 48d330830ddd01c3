import pytest
import torch
from torch.nn import functional as F

from retnet import loss
from retnet.loss import IGNORED, linear_next_token_loss, linear_token_costs, next_token_loss


@pytest.fixture(params=[1 << 23, 700], ids=["at once", "in parts"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 700 numbers at a time, 64 of the 150 rows of ten logits."""
    monkeypatch.setattr(loss, "_CHUNK_NUMBERS", request.param)


def example(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(3, 50, 8, dtype=dtype, generator=rng, requires_grad=True)
    weight = torch.randn(10, 8, dtype=dtype, generator=rng, requires_grad=True)
    targets = torch.randint(10, (3, 50), generator=rng)
    targets[0, :7] = targets[2, 40:] = IGNORED
    return features, weight, targets


@pytest.mark.usefixtures("chunks")
def test_it_is_the_loss_of_the_logits() -> None:
    features, weight, targets = example()
    actual = linear_next_token_loss(features, weight, targets)
    expected = next_token_loss(F.linear(features, weight).float(), targets)
    torch.testing.assert_close(actual, expected.double(), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("chunks")
def test_both_gradients_are_exact() -> None:
    features, weight, targets = example()
    logits = F.linear(features, weight).flatten(0, 1)
    exact = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED)
    expected = torch.autograd.grad(3 * exact, (features, weight))
    actual = torch.autograd.grad(
        3 * linear_next_token_loss(features, weight, targets), (features, weight)
    )
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("chunks")
def test_under_autocast_the_products_are_rounded() -> None:
    """Gradients come in the dtype of what they are of, 1 % from the exact ones."""
    features, weight, targets = example(torch.float32)
    expected = torch.autograd.grad(
        linear_next_token_loss(features, weight, targets), (features, weight)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = linear_next_token_loss(features, weight, targets)
    actual = torch.autograd.grad(rounded, (features, weight))
    assert rounded.dtype == torch.float32
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == torch.float32
        assert not torch.equal(mine, theirs)
        assert (mine - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.usefixtures("chunks")
def test_costs_are_those_of_each_target() -> None:
    features, weight, targets = example(torch.float32)
    costs = linear_token_costs(features, weight, targets)
    assert costs.shape == targets.shape
    assert not costs.requires_grad
    assert (costs[targets == IGNORED] == 0).all()
    mean = costs.sum() / (targets != IGNORED).sum()
    torch.testing.assert_close(mean, linear_next_token_loss(features, weight, targets).detach())


def test_logits_are_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is made has [rows, vocabulary] numbers."""
    monkeypatch.setattr(loss, "_CHUNK_NUMBERS", 64 * 1000)
    features = torch.randn(1000, 4, requires_grad=True)
    weight = torch.randn(1000, 4, requires_grad=True)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Watch.largest = max(Watch.largest, out.numel())
            return out

    with Watch():
        linear_next_token_loss(features, weight, torch.arange(1000)).backward()
    assert Watch.largest == 64 * 1000


def test_no_second_derivative() -> None:
    features, weight, targets = example()
    value = linear_next_token_loss(features, weight, targets)
    (grad,) = torch.autograd.grad(value, features, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(grad.sum(), features)
