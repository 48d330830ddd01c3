"""`transformers.Trainer` trains what a plain loop would: padded, packed, resumed, spread."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

import retnet
from retnet.data.tokenizer import ByteTokenizer, load_tokenizer
from retnet.hf import RetNetCache, RetNetConfig, RetNetForCausalLM, RetNetForSequenceClassification

pytest.importorskip("accelerate")  # Trainer needs it

Row = dict[str, list[int]]
CHECKPOINTING = next(  # its newest name
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def documents(count: int) -> list[Row]:
    """Real text: lines of the standard library, of 8 to 60 bytes each."""
    lines = [line.strip() for line in inspect.getsource(textwrap).splitlines()]
    texts = [line for line in lines if 8 <= len(line) <= 60]
    return [{"input_ids": ByteTokenizer().encode(text)} for text in texts[:count]]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """A few steps of plain gradient descent: no clipping, no warmup, nothing written."""
    chosen: dict[str, Any] = dict(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True, seed=0
    )
    chosen |= dict(optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0)
    chosen |= dict(max_steps=3, per_device_train_batch_size=4, logging_steps=1, save_strategy="no")
    return TrainingArguments(**(chosen | changes))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The byte tokenizer as Transformers loads it, padding on the right."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ByteTokenizer().save(folder)
    return AutoTokenizer.from_pretrained(folder, padding_side="right")


Collate = Callable[[list[Row]], dict[str, Tensor]]


def padding_collator(tokenizer: PreTrainedTokenizerBase) -> Collate:
    """Documents padded on the right, their ids as labels.

    Older versions of Transformers count first tokens in the mean, though nothing predicts them.
    """
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def without_first(rows: list[Row]) -> dict[str, Tensor]:
        batch = collate(rows)
        batch["labels"][:, 0] = -100
        return batch

    return without_first


@pytest.fixture(scope="module")
def padded(tokenizer: PreTrainedTokenizerBase) -> Collate:
    return padding_collator(tokenizer)


def weights(model: nn.Module) -> Tensor:
    """All of a model's weights in a row."""
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def losses(trainer: Trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def loss_apart(model: RetNetForCausalLM, rows: list[Row]) -> Tensor:
    """The mean loss of every token but first ones, each document read by itself."""
    model, total, count = model.to_retnet(), 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logits, _ = model(ids[:, :-1])
        total += retnet.next_token_loss(logits, ids[:, 1:]) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def descend(model: RetNetForCausalLM, rows: list[Row], steps: int) -> list[float]:
    """What `arguments` asks of Trainer, by hand, all rows in every step; the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    for _ in range(steps):
        loss = loss_apart(model, rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


ROWS = documents(6)
Descent = tuple[list[float], Tensor]
MakeModel = Callable[..., RetNetForCausalLM]


@pytest.fixture(scope="module")
def by_hand(make_model: MakeModel) -> Descent:
    """The losses and the weights of three steps without Trainer, on six documents apart."""
    model = make_model()
    before = weights(model)
    found = descend(model, ROWS, 3)
    assert found[-1] < found[0] - 0.1
    assert (weights(model) - before).abs().max() > 1e-2
    return found, weights(model)


def check_trains_as(expected: Descent, trainer: Trainer) -> None:
    """The loss is fp32 whatever the model is, so that equal means nearly."""
    trainer.train()
    assert losses(trainer) == pytest.approx(expected[0], rel=2e-6)
    torch.testing.assert_close(weights(trainer.model), expected[1], rtol=0, atol=1e-6)


def in_parts(parts: int) -> dict[str, int]:
    """Arguments for six documents a step, so many parts accumulated."""
    return {"per_device_train_batch_size": 6 // parts, "gradient_accumulation_steps": parts}


@pytest.mark.parametrize("parts", [1, 3])
def test_padded_batches(
    make_model: MakeModel, by_hand: Descent, padded: Collate, tmp_path: Path, parts: int
) -> None:
    """Padded on the right, and gradients accumulated: the same as documents apart."""
    args = arguments(tmp_path, **in_parts(parts))
    check_trains_as(by_hand, Trainer(make_model(), args, padded, ROWS))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "told_by",
    [
        {},
        {"return_seq_idx": True},
        {"return_seq_idx": True, "return_position_ids": False},
        {"return_flash_attn_kwargs": True},
    ],
    ids=lambda flags: "+".join(flags) or "position_ids",
)
def test_packed_rows(
    make_model: MakeModel, by_hand: Descent, tmp_path: Path, told_by: dict[str, bool], parts: int
) -> None:
    """One long row without padding: documents see nothing of each other."""
    args = arguments(tmp_path, **in_parts(parts))
    collate = DataCollatorWithFlattening(**told_by)
    check_trains_as(by_hand, Trainer(make_model(), args, collate, ROWS))


def test_recomputed_blocks(
    make_model: MakeModel, by_hand: Descent, padded: Collate, tmp_path: Path
) -> None:
    """Every block runs twice a step, and nothing else changes."""
    model, calls = make_model(), []
    for layer in model.backbone.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    args = arguments(tmp_path, **in_parts(1), **{CHECKPOINTING: True})
    check_trains_as(by_hand, Trainer(model, args, padded, ROWS))
    assert len(calls) == 3 * 2 * model.config.num_layers


def test_resumed_training_is_bit_equal(
    make_model: MakeModel, padded: Collate, tmp_path: Path
) -> None:
    """With dropout and Adam: weights, order of documents, randomness and schedule go on."""

    def trainer_in(folder: str, **changes: Any) -> Trainer:
        changes = dict(optim="adamw_torch", learning_rate=1e-3, max_grad_norm=1.0, **changes)
        args = arguments(tmp_path / folder, max_steps=6, lr_scheduler_type="linear", **changes)
        return Trainer(make_model(1, dropout=0.1), args, padded, documents(20))

    straight = trainer_in("straight")
    straight.train()
    trainer_in("halves", save_strategy="steps", save_steps=3).train()
    resumed = trainer_in("halves")
    resumed.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-3"))
    assert len(losses(resumed)) == 6
    assert losses(resumed) == losses(straight)
    assert torch.equal(weights(resumed.model), weights(straight.model))


def test_saved_training_loads_elsewhere(
    make_model: MakeModel, tokenizer: PreTrainedTokenizerBase, padded: Collate, tmp_path: Path
) -> None:
    """A checkpoint of Trainer, and what it saves at the end, are checkpoints of ours."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    trainer = Trainer(make_model(), args, padded, ROWS, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([ROWS[0]["input_ids"]])
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        assert torch.equal(retnet.load_checkpoint(folder)(ids)[0], trainer.model.eval()(ids).logits)
        assert load_tokenizer(folder).encode("a") == [100]


def test_a_trained_model_generates_with_its_cache(
    make_model: MakeModel, padded: Collate, tmp_path: Path
) -> None:
    """Trainer writes use_cache=False into the configuration; `generate` has its own setting."""
    trainer = Trainer(make_model(), arguments(tmp_path), padded, ROWS)
    trainer.train()
    trainer.save_model()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    written = model.generate(torch.tensor([[70]]), max_new_tokens=3, return_dict_in_generate=True)
    assert isinstance(written.past_key_values, RetNetCache)


@pytest.mark.parametrize("use_cache", [False, True])
def test_evaluation_of_padded_batches(
    make_model: MakeModel, padded: Collate, tmp_path: Path, use_cache: bool
) -> None:
    """Padding on the right is no mistake, even where the configuration asks for a cache."""
    model = make_model()
    args = arguments(tmp_path, per_device_eval_batch_size=4, use_cache=use_cache)
    found = Trainer(model, args, padded, eval_dataset=documents(8)).evaluate()["eval_loss"]
    assert model.config.use_cache == use_cache
    with torch.no_grad():
        expected = [loss_apart(model, rows).item() for rows in (documents(8)[:4], documents(8)[4:])]
    assert found == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_predictions_are_logits(make_model: MakeModel, padded: Collate, tmp_path: Path) -> None:
    """A call in evaluation hands out a cache where it is asked for; Trainer leaves it aside."""
    model = make_model()
    args = arguments(tmp_path, per_device_eval_batch_size=1, use_cache=True)
    predicted = Trainer(model, args, padded).predict(documents(1)).predictions
    read = model(torch.tensor([documents(1)[0]["input_ids"]]))
    assert read.past_key_values is not None
    torch.testing.assert_close(torch.from_numpy(predicted), read.logits, rtol=0, atol=1e-12)


def test_autocast_to_bf16(make_model: MakeModel, padded: Collate, tmp_path: Path) -> None:
    """Products in bf16, weights in fp32: near to fp32, and not the same."""

    def run(**changes: Any) -> Trainer:
        args = arguments(tmp_path, **in_parts(1), **changes)
        trainer = Trainer(make_model(dtype=torch.float32), args, padded, ROWS)
        trainer.train()
        return trainer

    exact, rounded = run(), run(bf16=True)
    assert losses(rounded) == pytest.approx(losses(exact), rel=2e-2)
    assert losses(rounded) != pytest.approx(losses(exact), rel=1e-6)
    assert {each.dtype for each in rounded.model.parameters()} == {torch.float32}


DISTRIBUTED = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("test_trainer", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.train_on_many_documents(Path(sys.argv[2]), per_device_train_batch_size=2)
"""


def train_on_many_documents(folder: Path, **changes: Any) -> None:
    """Two epochs of a saved model on 16 documents; in `folder`, the model, the tokenizer, and then
    the losses and the trained model.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(folder)
    args = arguments(folder, max_steps=8, ddp_find_unused_parameters=False, **changes)
    trainer = Trainer(model, args, padding_collator(tokenizer), documents(16))
    trainer.train()
    trainer.save_model(str(folder / "trained"))
    if trainer.is_world_process_zero():
        record = {"losses": losses(trainer), "processes": args.world_size}
        (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_two_processes(make_model: MakeModel, tmp_path: Path) -> None:
    """Two processes (gloo) of two documents each equal one process of four: losses and weights."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        make_model().save_pretrained(folder)
        ByteTokenizer().save(folder)
    train_on_many_documents(tmp_path / "one", per_device_train_batch_size=4)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = tmp_path / "distributed.py"
    script.write_text(DISTRIBUTED)
    subprocess.run(
        [*torchrun, str(script), __file__, str(tmp_path / "two")],
        check=True,
        timeout=300,
        capture_output=True,
        cwd=Path(retnet.__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    records = [json.loads((tmp_path / each / "record.json").read_text()) for each in ("one", "two")]
    assert [record["processes"] for record in records] == [1, 2]
    assert records[1]["losses"] == pytest.approx(records[0]["losses"], rel=1e-5)
    one, two = (retnet.load_checkpoint(tmp_path / each / "trained") for each in ("one", "two"))
    torch.testing.assert_close(weights(two), weights(one), rtol=0, atol=1e-6)


def letters(count: int) -> list[dict[str, Any]]:
    """Rows of 3 to 12 letters, and whether the last comes before "n"."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(3, 13, (), generator=generator))
        ids = torch.randint(100, 126, (length,), generator=generator).tolist()  # "a" is 100
        rows.append({"input_ids": ids, "label": int(ids[-1] < 113)})
    return rows


def test_classification_of_padded_rows(
    make_config: Callable[..., RetNetConfig], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The label is in the last token, which padding follows: it is learned, and loads again."""
    torch.manual_seed(0)
    model = RetNetForSequenceClassification(make_config(num_labels=2))
    args = arguments(
        tmp_path, optim="adamw_torch", learning_rate=3e-3, max_steps=40, logging_strategy="no"
    )
    trainer = Trainer(
        model,
        args,
        DataCollatorWithPadding(tokenizer),
        letters(160),
        letters(200)[160:],
        compute_metrics=lambda found: {
            "accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()
        },
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    assert before < 0.75
    assert after > 0.95
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    alone = [loaded(torch.tensor([row["input_ids"]])).logits[0] for row in letters(20)]
    predicted = torch.from_numpy(trainer.predict(letters(20)).predictions)
    torch.testing.assert_close(predicted, torch.stack(alone), rtol=0, atol=1e-5)
