"""torch.compile without a break, and torch.export for any batch and length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from retnet.hf import RetNetForCausalLM, RetNetForSequenceClassification

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """No test finds what another compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)


def padded(ids: Tensor) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@pytest.mark.parametrize("score_norm", ["none", "paper"])
def test_compiled_forward(make_model: Any, ids: Tensor, score_norm: str) -> None:
    """Plain, padded and packed, at lengths it was not compiled for."""
    model = make_model(score_norm=score_norm, num_layers=1)
    fast = compiled(model)
    seq_idx = torch.arange(20)[None] // 7
    for length in (20, 2):
        part = ids[:, :length]
        for options in ({}, padded(part), {"seq_idx": seq_idx[:, :length]}):
            expected = model(part, use_cache=False, **options).logits
            got = fast(part, use_cache=False, **options).logits
            is_token = options.get("attention_mask", torch.ones_like(part)).bool()
            torch.testing.assert_close(got[is_token], expected[is_token])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training(make_model: Any, ids: Tensor, checkpointing: bool) -> None:
    model = make_model(num_layers=1).train()
    model.backbone.gradient_checkpointing = checkpointing
    model(ids, labels=ids).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    compiled(model)(ids, labels=ids).loss.backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name])


def test_compiled_steps(model: RetNetForCausalLM, ids: Tensor) -> None:
    """With the cache handed in and out."""
    expected = model(ids).logits
    fast = compiled(model)
    with torch.no_grad():
        cache = fast(ids[:, :12], use_cache=True).past_key_values
        for i in range(12, 20):
            got = fast(ids[:, i : i + 1], past_key_values=cache).logits
            torch.testing.assert_close(got[:, 0], expected[:, i])
    assert cache.state.position.tolist() == [20, 20]


def test_compiled_generate(make_model: Any, ids: Tensor) -> None:
    model = make_model(num_layers=1)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    mask = padded(ids)["attention_mask"]
    expected = model.generate(ids, attention_mask=mask, **options)
    model.forward = compiled(model.forward)
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), expected)


class Scores(nn.Module):
    """Tensors in and out: what torch.export takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return scores


@pytest.mark.parametrize(
    ("strict", "kind"),
    [
        (False, RetNetForCausalLM),
        (True, RetNetForCausalLM),
        (False, RetNetForSequenceClassification),
    ],
)
def test_export(
    make_model: Any, make_config: Any, ids: Tensor, tmp_path: Path, strict: bool, kind: Any
) -> None:
    """One program for every batch and length; saved, loaded and run."""
    model = kind(make_config(num_layers=1)).double().eval()
    sizes = {0: Dim("batch", max=64), 1: Dim("length", min=2, max=4096)}
    mask = torch.ones_like(ids)
    program = torch.export.export(
        Scores(model), (ids, mask), dynamic_shapes={"ids": sizes, "mask": sizes}, strict=strict
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch, length in ((1, 2), (3, 51), (5, 200)):
        ids = torch.randint(3, 259, (batch, length))
        mask = torch.ones_like(ids)
        mask[0, : length // 3] = 0
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        got = loaded(ids, mask)
        if kind is RetNetForCausalLM:
            got, expected = got[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(got, expected)
