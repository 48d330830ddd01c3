"""One directory: what Transformers writes this project reads, and the other way round."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from retnet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from retnet.config import ModelConfig
from retnet.data.tokenizer import ByteTokenizer
from retnet.hf import RetNetConfig, RetNetForCausalLM, RetNetForSequenceClassification, RetNetModel
from retnet.model import RetNet

VARIANTS: list[dict[str, Any]] = [
    {"bias": True, "head_norm_affine": True},
    {"tie_embeddings": True, "dropout": 0.1},
    {"decay": [0.5, 1.0], "score_norm": "paper", "feed_forward": "swiglu", "norm": "rmsnorm"},
    {"value_size": 16, "key_size": 8, "ffn_size": 24, "embedding_norm": True, "ffn_norm": True},
]


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shard", ["50GB", "8kB"])
def test_save_and_load(
    tmp_path: Path, make_model: Any, ids: Tensor, changes: Any, dtype: torch.dtype, shard: str
) -> None:
    """Bit-equal in the Auto class, in one file or many; in `load_checkpoint` too."""
    model = make_model(dtype=dtype, **changes)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "8kB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is RetNetForCausalLM
    assert not again.training
    assert again.dtype == dtype
    assert same_weights(again, model)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.to_model_config() == model.config.to_model_config()
    core = load_checkpoint(tmp_path)
    assert core.config == model.config.to_model_config()
    assert torch.equal(core(ids)[0], model(ids).logits)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_projects_own_checkpoints_load(tmp_path: Path, ids: Tensor, changes: Any) -> None:
    config = ModelConfig(**{"d_model": 32, "num_layers": 2, "num_heads": 2, **changes})
    core = RetNet(config, generator=torch.Generator().manual_seed(0)).eval()
    save_checkpoint(tmp_path, core, ByteTokenizer())
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(ids).logits, core(ids)[0])
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert model.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(tmp_path)("a", add_special_tokens=False).input_ids == [100]


def test_tied_weights_are_one(tmp_path: Path, make_model: Any) -> None:
    model = make_model(tie_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.backbone.embed_tokens.weight
    untied = make_model(tie_embeddings=False)
    assert untied.lm_head.weight is not untied.backbone.embed_tokens.weight


def test_base_model(tmp_path: Path, make_model: Any, ids: Tensor) -> None:
    """A language model's directory serves a model without a head, and its own a tied one."""
    model = make_model(tie_embeddings=True)
    model.save_pretrained(tmp_path / "lm")
    base = AutoModel.from_pretrained(tmp_path / "lm")
    assert type(base) is RetNetModel
    assert torch.equal(model.lm_head(base(ids).last_hidden_state), model(ids).logits)
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_classifier(tmp_path: Path, make_model: Any, ids: Tensor) -> None:
    make_model().save_pretrained(tmp_path / "lm")
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(tmp_path / "lm", num_labels=3)
    assert type(model) is RetNetForSequenceClassification
    assert model(ids).logits.shape == (2, 3)
    model.save_pretrained(tmp_path / "classifier")
    again = load(tmp_path / "classifier")
    assert again.config.num_labels == 3
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_from_and_to_the_core(make_model: Any, ids: Tensor) -> None:
    """They share their weights: what changes in one changes in the other."""
    for tie in (True, False):
        model = make_model(tie_embeddings=tie)
        core = model.to_retnet()
        assert not core.training
        assert torch.equal(core(ids)[0], model(ids).logits)
        back = RetNetForCausalLM.from_retnet(core)
        assert torch.equal(back(ids).logits, model(ids).logits)
        with torch.no_grad():
            back.lm_head.weight.mul_(2)
        assert torch.equal(core(ids)[0], model(ids).logits)
        assert torch.equal(back(ids).logits, model(ids).logits)
        for training in (True, False):
            assert model.train(training).to_retnet().training == training
            assert RetNetForCausalLM.from_retnet(core.train(training)).training == training


@pytest.mark.parametrize("bias", [True, False])
def test_the_core_has_the_head_that_the_model_has(make_model: Any, ids: Tensor, bias: bool) -> None:
    """Not the one that its configuration speaks of."""
    model = make_model(tie_embeddings=True)
    model.set_output_embeddings(torch.nn.Linear(32, 259, bias=bias).double())
    assert torch.equal(model.to_retnet()(ids)[0], model(ids).logits)


def test_modules_of_a_subclass(make_config: Callable[..., RetNetConfig]) -> None:
    """They are drawn as Transformers draws them: the core's rule goes by its own names."""

    class WithValues(RetNetForCausalLM):
        def __init__(self, config: RetNetConfig) -> None:
            super().__init__(config)
            self.values = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 1))
            self.post_init()

    norm, linear = WithValues(make_config()).values
    assert torch.equal(norm.weight, torch.ones(32))
    assert not linear.bias.any()


def test_initial_weights_follow_the_core(make_config: Callable[..., RetNetConfig]) -> None:
    """Also those of a new head: the scale of each matrix is that of `initialise_`."""
    config = make_config(d_model=256, num_heads=4, tie_embeddings=False)
    torch.manual_seed(0)
    model = RetNetForCausalLM(config)
    core = RetNet(config.to_model_config(), generator=torch.Generator().manual_seed(1))
    for name, weight in core.state_dict().items():
        mine = model.state_dict()[name]
        if weight.dim() < 2:
            assert torch.equal(mine, weight), name
        else:
            assert mine.std().item() == pytest.approx(weight.std().item(), rel=0.03), name


def test_initial_weights_under_from_pretrained(tmp_path: Path, make_model: Any) -> None:
    """Only the missing head is drawn; what was loaded stays."""
    make_model().save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    model = load(tmp_path)
    assert same_weights(model.backbone, make_model().backbone)
    assert 0.5 * 32**-0.5 < model.score.weight.std() < 2 * 32**-0.5


def test_configuration_is_the_cores() -> None:
    """The same fields with the same defaults."""
    for field in fields(ModelConfig):
        assert getattr(RetNetConfig, field.name) == field.default, field.name
    assert RetNetConfig().to_model_config() == ModelConfig()
    config = ModelConfig(d_model=96, num_heads=3, decay=(0.5, 0.75, 1.0), tie_embeddings=False)
    assert RetNetConfig.from_model_config(config).to_model_config() == config


def test_configuration_answers_to_both_names() -> None:
    config = RetNetConfig(hidden_size=96, num_attention_heads=3, num_hidden_layers=5)
    assert (config.d_model, config.num_heads, config.num_layers) == (96, 3, 5)
    assert (config.head_dim, config.intermediate_size) == (32, 192)
    assert config.max_position_embeddings == 2**20
    assert not RetNetConfig(tie_word_embeddings=False).tie_embeddings


def test_configuration_keeps_its_sizes(tmp_path: Path) -> None:
    """A size that equals a default but not what would be derived is written out."""
    config = RetNetConfig(d_model=512, num_heads=4, key_size=64, decay=(0.5, 0.6, 0.7, 0.8))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is RetNetConfig
    assert again.to_model_config() == config.to_model_config()
    assert again.key_size == 64
    changed = AutoConfig.from_pretrained(tmp_path, num_layers=7)
    assert changed.num_layers == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": "slow"}, "decay must be one of"),
        ({"num_heads": 3}, "num_heads must divide d_model"),
        ({"d_model": -1}, "d_model must be an integer >= 1"),
    ],
)
def test_configuration_is_checked(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetNetConfig(**changes)


# --- what isn't a whole model of ours


def test_another_projects_retnet(tmp_path: Path, make_model: Any) -> None:
    """Five incompatible schemas call themselves "retnet"."""
    make_model().save_pretrained(tmp_path)
    sizes = {
        "hidden_size": 64,
        "expand_k": 1,
        "expand_v": 2,
        "num_hidden_layers": 2,
        "vocab_size": 9,
    }
    fla = {"model_type": "retnet", "attn_mode": "chunk", "fuse_norm": True, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(fla))
    with pytest.raises(CheckpointError, match="retnet convert --from fla"):
        RetNetForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.norm.weight": None}, "backbone.norm.weight is missing"),
        ({"backbone.other": torch.ones(3)}, "backbone.other is not of this model"),
        ({"backbone.norm.weight": torch.full((32,), float("nan"))}, "norm.weight is not finite"),
        ({"lm_head.weight": torch.full((259, 32), float("inf"))}, "lm_head.weight is not finite"),
    ],
    ids=["missing", "extra", "nan", "inf"],
)
def test_broken_weights(tmp_path: Path, make_model: Any, change: Any, message: str) -> None:
    make_model(tie_embeddings=False).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {**load_file(file), **change}
    save_file({n: w for n, w in weights.items() if w is not None}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_misshapen_weights(
    tmp_path: Path, make_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Transformers says which in its report, and then no."""
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "backbone.norm.weight": torch.ones(31)}, file, {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "backbone.norm.weight" in caplog.text


def test_loading_info(tmp_path: Path, make_model: Any) -> None:
    make_model().save_pretrained(tmp_path)
    model, info = RetNetForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is RetNetForCausalLM
    assert not info["missing_keys"]
