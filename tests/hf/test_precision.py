"""RetNet in half precision and with int8 weights: near to fp32, its states in fp32."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from retnet.hf import RetNetCache, RetNetForCausalLM

MakeModel = Callable[..., RetNetForCausalLM]
HALVES = {torch.bfloat16: 2e-2, torch.float16: 2e-3}  # and how far from fp32 they may be


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def read(model: nn.Module, ids: Tensor, *, cut: int = 0) -> tuple[Tensor, RetNetCache]:
    """The logits of all tokens, read in two calls if there is a cut, and the cache after."""
    with torch.no_grad():
        first = model(ids[:, :cut]) if cut else None
        cache = None if first is None else first.past_key_values
        rest = model(ids[:, cut:], past_key_values=cache, use_cache=True)
    logits = rest.logits if first is None else torch.cat([first.logits, rest.logits], dim=1)
    return logits, rest.past_key_values


def check_generation(model: nn.Module, exact: nn.Module, ids: Tensor, tolerance: float) -> None:
    """What is written has the logits that an exact model gives to the same tokens."""
    written = model.generate(
        ids,
        max_new_tokens=20,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected, _ = read(exact, written.sequences[:, :-1])
    found = torch.stack(written.logits, dim=1)
    assert found.shape[1] == 20
    assert relative_error(found, expected[:, ids.shape[1] - 1 :]) < tolerance
    assert all(layer.state.dtype == torch.float32 for layer in written.past_key_values.layers)


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    """A folder with a model in fp32."""
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def in_half(saved: Path, dtype: torch.dtype, how: str) -> RetNetForCausalLM:
    """The model in half precision, by one of the ways to get there."""
    if how == "dtype=":
        return AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    model = RetNetForCausalLM.from_pretrained(saved)
    if how == ".to()":
        return model.to(dtype)
    return model.bfloat16() if dtype == torch.bfloat16 else model.half()


@pytest.mark.parametrize("how", ["dtype=", ".to()", ".half()"])
@pytest.mark.parametrize(("dtype", "tolerance"), HALVES.items())
def test_half_precision(
    saved: Path, ids: Tensor, dtype: torch.dtype, tolerance: float, how: str
) -> None:
    """Weights and logits in half, near to those of the same weights in fp32."""
    model = in_half(saved, dtype, how)
    assert {each.dtype for each in model.parameters()} == {dtype}
    exact = copy.deepcopy(model).float()
    for cut in (0, 7):
        logits, cache = read(model, ids, cut=cut)
        assert logits.dtype == dtype
        assert relative_error(logits, read(exact, ids)[0]) < tolerance
        assert all(layer.state.dtype == torch.float32 for layer in cache.layers)
    check_generation(model, exact, ids, tolerance)


@pytest.mark.parametrize("how", ["dtype=", ".to()"])
@pytest.mark.parametrize("dtype", HALVES.keys())
def test_decays_are_not_rounded(
    make_model: MakeModel, tmp_path: Path, dtype: torch.dtype, how: str
) -> None:
    """gamma = 1 - 2^-9 is 1 in bf16: after 2,000 tokens a state would be many times too large."""
    gammas = [1 - 2**-9, 1 - 2**-12]
    make_model(dtype=torch.float32, decay=gammas, num_layers=1).save_pretrained(tmp_path)
    model = in_half(tmp_path, dtype, how)
    ids = torch.full((1, 2000), 70)  # one token again and again, so that keys add up

    def states(model: nn.Module) -> Tensor:
        _, cache = read(model, ids[:, :1999])
        _, after = read(model, ids, cut=1999)
        assert not torch.equal(cache.layers[0].state, after.layers[0].state)
        return after.layers[0].state

    found, expected = states(model), states(copy.deepcopy(model).float())
    assert relative_error(found, expected) < 2e-2
    undecayed = copy.deepcopy(model).float()
    undecayed.backbone.config = type(undecayed.backbone.config).from_dict(
        {**undecayed.backbone.config.to_dict(), "decay": "none"}
    )
    assert relative_error(states(undecayed), expected) > 0.5


def dequantized(model: RetNetForCausalLM, like: RetNetForCausalLM) -> RetNetForCausalLM:
    """A plain model whose weights are the numbers that the int8 ones stand for."""
    plain = copy.deepcopy(like)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = getattr(module.weight, "dequantize", module.weight.detach)()
            plain.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    return plain


@pytest.fixture
def quantization() -> ModuleType:
    return pytest.importorskip("torchao.quantization")


def int8_names(model: nn.Module) -> set[str]:
    """The weights that torchao has replaced."""
    return {name for name, each in model.named_parameters() if type(each) is not nn.Parameter}


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_in_place(
    make_model: MakeModel, ids: Tensor, quantization: ModuleType, tied: bool
) -> None:
    """Every projection and the output head; the embedding stays as it is."""
    exact = make_model(dtype=torch.float32, tie_embeddings=tied)
    model = copy.deepcopy(exact)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert len(int8_names(model)) == 2 * 7 + 1
    assert type(model.backbone.embed_tokens.weight) is nn.Parameter
    plain = dequantized(model, exact)
    assert relative_error(read(model, ids)[0], read(plain, ids)[0]) < 1e-5
    assert 1e-4 < relative_error(read(model, ids)[0], read(exact, ids)[0]) < 5e-2
    check_generation(model, plain, ids, 1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_when_loaded(
    make_model: MakeModel, ids: Tensor, tmp_path: Path, quantization: ModuleType, tied: bool
) -> None:
    """Every projection, and not the output head; saved and loaded again, the same to the bit."""
    exact = make_model(dtype=torch.float32, tie_embeddings=tied)
    exact.save_pretrained(tmp_path / "exact")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", quantization_config=config)
    assert len(int8_names(model)) == 2 * 7
    assert (model.lm_head.weight is model.backbone.embed_tokens.weight) == tied
    plain = dequantized(model, exact)
    assert relative_error(read(model, ids)[0], read(plain, ids)[0]) < 1e-5
    assert 1e-4 < relative_error(read(model, ids)[0], read(exact, ids)[0]) < 5e-2
    check_generation(model, plain, ids, 1e-5)
    model.save_pretrained(tmp_path / "int8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert int8_names(loaded) == int8_names(model)
    assert torch.equal(read(loaded, ids)[0], read(model, ids)[0])
