"""What tools do to a model: resize its vocabulary, copy it, spread it over devices."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import retnet
from retnet.hf import (
    RetNetCache,
    RetNetConfig,
    RetNetForCausalLM,
    RetNetForSequenceClassification,
    RetNetModel,
)

MakeModel = Callable[..., RetNetForCausalLM]


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("tied", [False, True])
def test_a_larger_vocabulary(
    make_model: MakeModel, ids: Tensor, tmp_path: Path, tied: bool
) -> None:
    """Old tokens keep their weights; what is saved is a whole model of the new size."""
    model = make_model(tie_embeddings=tied)
    expected = logits(model, ids)
    new = torch.full_like(ids, 299)
    with pytest.raises(ValueError, match=r"tokens must be ids in \[0, 259\)"):
        model(new)
    model.resize_token_embeddings(300)
    found = logits(model, ids)
    assert found.shape == (2, 20, 300)
    torch.testing.assert_close(found[..., :259], expected, rtol=0, atol=1e-12)
    assert logits(model, new).isfinite().all()
    assert (model.lm_head.weight is model.backbone.embed_tokens.weight) == tied
    model.save_pretrained(tmp_path)
    assert torch.equal(retnet.load_checkpoint(tmp_path)(ids)[0], found)
    assert model.to_retnet().config.vocab_size == model.config.vocab_size == 300


@pytest.mark.parametrize("tied", [False, True])
def test_a_smaller_vocabulary(make_model: MakeModel, ids: Tensor, tied: bool) -> None:
    model = make_model(tie_embeddings=tied)
    ids = ids.clamp(max=99)
    expected = logits(model, ids)[..., :100]
    model.resize_token_embeddings(100)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-12)


def test_embeddings_in_and_out(make_model: MakeModel, ids: Tensor) -> None:
    """The modules themselves; replaced ones are used."""
    model, other = make_model(), make_model(seed=1)
    assert model.get_input_embeddings() is model.backbone.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    model.set_input_embeddings(other.get_input_embeddings())
    model.set_output_embeddings(other.get_output_embeddings())
    for mine, theirs in zip(model.backbone.layers, other.backbone.layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    assert torch.equal(logits(model, ids), logits(other, ids))


@pytest.mark.parametrize("kind", [RetNetModel, RetNetForSequenceClassification])
def test_no_embeddings_out(make_config: Callable[..., RetNetConfig], kind: Any) -> None:
    model = kind(make_config())
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert model.get_output_embeddings() is None


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, saved]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_model(
    make_model: MakeModel, ids: Tensor, copied: Callable[[Any], Any], tied: bool
) -> None:
    """The same model with weights of its own, which are tied where they were."""
    model = make_model(tie_embeddings=tied)
    expected = logits(model, ids)
    other = copied(model)
    assert torch.equal(logits(other, ids), expected)
    assert (other.lm_head.weight is other.backbone.embed_tokens.weight) == tied
    with torch.no_grad():
        other.backbone.embed_tokens.weight.zero_()
    assert torch.equal(logits(model, ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_cache(
    model: RetNetForCausalLM, ids: Tensor, copied: Callable[[Any], Any]
) -> None:
    """Going on from the copy changes nothing of the original, and both say the same."""

    def rest(cache: RetNetCache) -> Tensor:
        return model(ids[:, 12:], past_key_values=cache).logits

    cache = model(ids[:, :12]).past_key_values
    first, second = copied(cache), copied(cache)
    assert torch.equal(rest(first), rest(second))
    assert first.get_seq_length() == 20
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(rest(cache), logits(model, ids)[:, 12:], rtol=0, atol=1e-12)


def test_device_map_auto(make_model: MakeModel, ids: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    make_model().save_pretrained(tmp_path)
    model = RetNetForCausalLM.from_pretrained(tmp_path, device_map="auto")
    assert torch.equal(logits(model, ids), logits(make_model(), ids))


def test_a_layer_on_the_disk(make_model: MakeModel, ids: Tensor, tmp_path: Path) -> None:
    """Fetched for each call, among them those of `generate`."""
    pytest.importorskip("accelerate")
    make_model().save_pretrained(tmp_path)
    places = dict.fromkeys(
        ["backbone.embed_tokens", "backbone.layers.0", "backbone.norm", "lm_head"], "cpu"
    )
    places["backbone.layers.1"] = "disk"
    model = RetNetForCausalLM.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "disk"
    )
    assert all(each.is_meta for each in model.backbone.layers[1].parameters())
    assert torch.equal(logits(model, ids), logits(make_model(), ids))
    expected = make_model().generate(ids, max_new_tokens=8)
    assert torch.equal(model.generate(ids, max_new_tokens=8), expected)


@pytest.mark.parametrize("score_norm", ["none", "paper"])
def test_layers_on_several_devices(make_model: MakeModel, ids: Tensor, score_norm: str) -> None:
    """What all layers are told follows them, and each state stays with its layer.

    The second device is torch's meta device, on which only shapes and devices are checked.
    """
    hooks = pytest.importorskip("accelerate.hooks")
    model = make_model(score_norm=score_norm)
    for module in (model.backbone.layers[1], model.backbone.norm, model.lm_head):
        hook = hooks.AlignDevicesHook(execution_device=torch.device("meta"))
        hooks.add_hook_to_module(module.to("meta"), hook)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    first = model(ids, attention_mask=mask)
    cache = first.past_key_values
    cache.reorder_cache(torch.tensor([1, 0]))
    second = model(ids[:, :1], past_key_values=cache)
    assert first.logits.is_meta
    assert second.logits.shape == (2, 1, 259)
    assert [layer.state.device.type for layer in cache.layers] == ["cpu", "meta"]
    packed = model(ids, seq_idx=(torch.arange(20) > 8).int()[None])
    assert packed.logits.is_meta
