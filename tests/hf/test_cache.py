"""The cache: states in rows, values that are replaced and not changed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.hf import RetNetCache, RetNetForCausalLM
from retnet.hf.inputs import CACHE_NAME


@torch.no_grad()
def read(model: RetNetForCausalLM, ids: Tensor) -> RetNetCache:
    cache = model(ids, use_cache=True).past_key_values
    assert isinstance(cache, RetNetCache)
    return cache


def states(cache: RetNetCache) -> tuple[Tensor, ...]:
    assert cache.state is not None
    return (*cache.state.layers, cache.state.position)


def assert_equal(cache: RetNetCache, expected: list[Tensor]) -> None:
    for mine, theirs in zip(states(cache), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_holds_the_models_state(model: RetNetForCausalLM, ids: Tensor) -> None:
    """The same state as that of the core."""
    cache = read(model, ids)
    _, state = model.to_retnet()(ids)
    assert_equal(cache, [*state.layers, state.position])
    assert len(cache) == model.config.num_layers
    assert cache.get_seq_length() == 20
    assert cache.layers[0].get_max_cache_shape() == cache.layers[0].get_max_length() == -1
    assert cache.get_mask_sizes(3, 0) == (23, 0)
    assert not cache.is_compileable
    assert cache.num_bytes == state.num_bytes == 2 * 2 * 2 * 16 * 32 * 8


def test_empty(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = RetNetCache(model.config)
    assert cache.state is None
    assert (cache.num_bytes, cache.get_seq_length(), cache.is_initialized) == (0, 0, False)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(3)
    out = model(ids, past_key_values=cache)
    assert out.past_key_values is cache
    assert cache.is_initialized
    torch.testing.assert_close(out.logits, model(ids).logits)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_either_name(model: RetNetForCausalLM, ids: Tensor, name: str) -> None:
    """Transformers 5.24 calls it `cache`, and all before `past_key_values`."""
    cache = read(model, ids)
    out = model(ids, **{name: cache})
    assert out[CACHE_NAME] is cache
    assert cache.get_seq_length() == 40
    torch.testing.assert_close(out.logits, model(torch.cat([ids, ids], dim=1)).logits[:, 20:])


def test_fp32_whatever_the_model(make_model: Any, ids: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        state = read(make_model(dtype=dtype), ids).state
        assert state is not None
        assert {layer.dtype for layer in state.layers} == {torch.float32}


def test_rows(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = read(model, ids)
    before = states(cache)
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    assert_equal(cache, [x[[1, 1, 0]] for x in before])
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert_equal(cache, [x[[1, 0]] for x in before])
    cache.batch_repeat_interleave(2)
    assert_equal(cache, [x[[1, 1, 0, 0]] for x in before])


def test_from_a_state(model: RetNetForCausalLM, make_config: Any, ids: Tensor) -> None:
    state = read(model, ids).state
    assert state is not None
    cache = RetNetCache.from_state(state, model.config)
    assert cache.get_seq_length() == 20
    assert_equal(cache, [*state.layers, state.position])
    with pytest.raises(ValueError, match="state must have 3 layers, got 2"):
        RetNetCache.from_state(state, make_config(num_layers=3))


def test_not_changed_in_place(model: RetNetForCausalLM, ids: Tensor) -> None:
    """What was taken out of a cache stays as it was when the cache goes on."""
    cache = read(model, ids)
    taken = cache.state
    assert taken is not None
    kept = [layer.clone() for layer in taken.layers]
    model(ids, past_key_values=cache)
    assert all(map(torch.equal, taken.layers, kept))


def test_a_copy_is_a_fork(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = read(model, ids)
    fork = copy.deepcopy(cache)
    first = model(ids, past_key_values=cache).logits
    assert torch.equal(model(ids, past_key_values=fork).logits, first)
    assert cache.get_seq_length() == fork.get_seq_length() == 40


def test_reset(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = read(model, ids)
    cache.reset()
    assert cache.get_seq_length() == 0
    torch.testing.assert_close(model(ids, past_key_values=cache).logits, model(ids).logits)


def test_crop(model: RetNetForCausalLM, ids: Tensor) -> None:
    cache = read(model, ids)
    for croppable in (cache, cache.layers[0]):
        with pytest.raises(ValueError, match="can't be cropped: its state is one sum over all"):
            croppable.crop(-1)


def test_keys_and_values(model: RetNetForCausalLM, ids: Tensor) -> None:
    keys = torch.zeros(2, 2, 1, 16)
    with pytest.raises(ValueError, match="holds states, not keys and values"):
        read(model, ids).update(keys, keys, 0)
