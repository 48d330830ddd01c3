"""PEFT's LoRA on RetNet: adapters train, save, load, merge and generate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import retnet
from retnet.data.tokenizer import ByteTokenizer
from retnet.hf import RetNetForCausalLM

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings(
    # PEFT asks under the name that Transformers before 5.23 has
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning"
)

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "g_proj", "out_proj", "up_proj", "down_proj")
CHECKPOINTING = next(  # its newest name
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
MakeModel = Callable[..., RetNetForCausalLM]


@pytest.fixture
def base(make_model: MakeModel, tmp_path: Path) -> RetNetForCausalLM:
    """A saved model, loaded: adapters remember where their base is."""
    make_model(tie_embeddings=False, eos_token_id=None).save_pretrained(tmp_path / "base")
    return RetNetForCausalLM.from_pretrained(tmp_path / "base")


def adapted(model: RetNetForCausalLM, targets: str | list[str], **changes: Any) -> Any:
    """The model with adapters, which are empty: they change nothing before they are trained."""
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=4, **changes)
    return peft.get_peft_model(model, config)


def train(model: nn.Module, ids: Tensor, steps: int = 5) -> list[float]:
    """The losses of a few steps of Adam on one batch."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("targets", "names"),
    [("all-linear", PROJECTIONS), (["q_proj", "v_proj"], ("q_proj", "v_proj"))],
    ids=["all-linear", "names"],
)
def test_adapters_alone_are_trained(
    base: RetNetForCausalLM, ids: Tensor, targets: str | list[str], names: tuple[str, ...]
) -> None:
    """ "all-linear" is every projection of every block, and not the output head."""
    before = logits(base, ids)
    model = adapted(base, targets)
    assert torch.equal(logits(model, ids), before)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    layers = [name.partition(".lora_")[0].rpartition(".")[2] for name in trained]
    assert {name: layers.count(name) for name in layers} == dict.fromkeys(names, 2 * 2)
    losses = train(model, ids)
    assert losses[-1] < losses[0] - 0.5
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("load", [peft.AutoPeftModelForCausalLM, AutoModelForCausalLM])
def test_saved_adapters_load(
    base: RetNetForCausalLM, ids: Tensor, tmp_path: Path, load: Any
) -> None:
    """The folder holds adapters alone and names the base, which is loaded too."""
    model = adapted(base, "all-linear")
    train(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = load.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_a_broken_base_is_refused_under_adapters(base: RetNetForCausalLM, tmp_path: Path) -> None:
    """What Transformers reports on such a folder is about the adapters alone."""
    adapted(base, ["q_proj"]).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    del weights["backbone.norm.weight"]
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"backbone\.norm\.weight is missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")


def test_merged_adapters(base: RetNetForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    """A merged model is a model like any other, and a checkpoint of ours when it is saved."""
    model = adapted(base, "all-linear")
    train(model, ids)
    expected = logits(model, ids)
    merged = model.merge_and_unload()
    assert type(merged) is RetNetForCausalLM
    torch.testing.assert_close(logits(merged, ids), expected, rtol=1e-9, atol=1e-9)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(retnet.load_checkpoint(tmp_path / "merged")(ids)[0], logits(merged, ids))


def test_generation_with_adapters(base: RetNetForCausalLM, ids: Tensor) -> None:
    """Token by token with the cache equals reading everything again, and the base says other."""
    model = adapted(base, "all-linear")
    train(model, ids)
    expected = ids
    for _ in range(12):
        expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
    written = model.generate(input_ids=ids, max_new_tokens=12)
    assert torch.equal(written, expected)
    with model.disable_adapter():
        other = model.generate(input_ids=ids, max_new_tokens=12)
    assert not torch.equal(other, written)


def test_trainer_with_recomputed_blocks(base: RetNetForCausalLM, tmp_path: Path) -> None:
    """The same losses, though what the first block is given needs no gradient of its own."""
    text = ByteTokenizer().encode("The same text, again and again. ")
    rows = [{"input_ids": text, "labels": text}] * 4

    def losses_and_calls(**changes: Any) -> tuple[list[float], int]:
        chosen: dict[str, Any] = dict(max_steps=4, learning_rate=1e-2, logging_steps=1)
        chosen |= dict(use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True)
        args = TrainingArguments(str(tmp_path), **chosen, **changes)
        loaded, calls = RetNetForCausalLM.from_pretrained(base.name_or_path), []
        loaded.backbone.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
        trainer = Trainer(adapted(loaded, "all-linear"), args, train_dataset=rows)
        trainer.train()
        found = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        return found, len(calls)

    expected, calls = losses_and_calls()
    assert expected[-1] < expected[0] - 0.5
    assert losses_and_calls(**{CHECKPOINTING: True}) == (expected, 2 * calls)


def test_modules_to_save(base: RetNetForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    """An output head of its own is trained whole and saved with the adapters."""
    before = base.lm_head.weight.clone()
    model = adapted(base, ["q_proj"], modules_to_save=["lm_head"])
    train(model, ids)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    merged = loaded.merge_and_unload()
    assert (merged.lm_head.weight - before).abs().max() > 1e-2
    torch.testing.assert_close(logits(merged, ids), logits(model, ids), rtol=1e-9, atol=1e-9)


def test_tied_embeddings_are_trained_as_one(
    make_model: MakeModel, ids: Tensor, tmp_path: Path
) -> None:
    """With `ensure_weight_tying` the embedding stays the output head, merged and saved as well."""
    model = make_model(tie_embeddings=True)
    before = model.lm_head.weight.clone()
    tied = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = adapted(model, ["q_proj"], **tied)
    train(model, ids)
    expected = logits(model, ids)
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.backbone.embed_tokens.weight
    assert (merged.lm_head.weight - before).abs().max() > 1e-2
    merged.save_pretrained(tmp_path)
    loaded = retnet.load_checkpoint(tmp_path)
    torch.testing.assert_close(loaded(ids)[0], expected, rtol=1e-9, atol=1e-9)
